"""Images that umoci and busybox make here, without any network, and skopeo copies."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve

from arcbox_guest.errors import ConflictError, GuestError, InvalidArgumentError, NotFoundError
from arcbox_guest.images import store as store_module
from arcbox_guest.images.image import Image, Reference
from arcbox_guest.images.staging import Staging, sweep
from arcbox_guest.images.store import ImageStore
from arcbox_guest.sandboxes.model import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("skopeo", "umoci"))), reason="needs root, skopeo and umoci"
)


def umoci(*arguments: str) -> None:
    subprocess.run(["umoci", *arguments], check=True, capture_output=True)  # noqa: S603, S607  of Debian's package


def make_image(layout: Path, layer: Callable[[tarfile.TarFile], None], *config: str) -> str:
    """An image of one layer; its reference."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        layer(tar)
    archive = layout.with_suffix(".tar")
    archive.write_bytes(buffer.getvalue())
    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:latest")
    umoci("raw", "add-layer", "--image", f"{layout}:latest", str(archive))
    if config:
        umoci("config", "--image", f"{layout}:latest", *config)
    return f"oci:{layout}:latest"


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def greeting(tar: tarfile.TarFile) -> None:
    add(tar, "etc", type=tarfile.DIRTYPE, mode=0o755)
    add(tar, "etc/greeting", b"hello\n", mode=0o640, uid=7, gid=8)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return make_image(
        tmp_path / "image",
        greeting,
        *("--config.entrypoint=/bin/entry", "--config.cmd=serve", "--config.env=A=b=c", "--config.user=nobody"),
        "--config.workingdir=/etc",
    )


def staged(store: ImageStore) -> list[str]:
    return [path.name for path in (store.directory / "staging").iterdir()]


async def test_an_image_is_unpacked_with_its_files_and_configuration(store: ImageStore, reference: str) -> None:
    image = await store.get(reference)
    found = (image.rootfs / "etc/greeting").stat()
    assert (image.rootfs / "etc/greeting").read_bytes() == b"hello\n"
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 7, 8)
    assert (image.entrypoint, image.cmd, image.user, image.working_dir) == (
        ("/bin/entry",),
        ("serve",),
        "nobody",
        "/etc",
    )
    assert image.env["A"] == "b=c"
    assert staged(store) == []


def test_the_image_s_configuration_is_the_default_of_a_sandbox() -> None:
    image = Image(
        digest="sha256:1", rootfs=Path("/r"), entrypoint=("e",), cmd=("c",), env={"A": "1", "B": "2"}, user="u"
    )
    filled = image.fill(Spec(id="box", env={"B": "3"}))
    assert (filled.rootfs, filled.cmd, filled.user, filled.working_dir) == ("/r", ("e", "c"), "u", "")
    assert filled.env == {"A": "1", "B": "3"}
    assert image.fill(Spec(id="box", cmd=("x", "y"))).cmd == ("e", "x", "y")
    assert evolve(image, working_dir="/w").fill(Spec(id="box", working_dir="/v")).working_dir == "/v"


async def test_however_many_ask_it_is_pulled_once(
    store: ImageStore, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    run = store_module._run

    async def counting(place: Path, *command: str) -> None:
        calls.append(command[0])
        await run(place, *command)

    monkeypatch.setattr(store_module, "_run", counting)
    images: list[Image] = []

    async def get() -> None:
        images.append(await store.get(reference))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(get)
    assert calls == ["skopeo", "umoci"]
    assert len({image.digest for image in images}) == 1
    await store.get(reference)
    assert calls == ["skopeo", "umoci"]


async def test_one_whose_puller_is_cancelled_is_pulled_by_the_next(store: ImageStore, reference: str) -> None:
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            nursery.start_soon(store.get, reference)
            first.cancel()
            with pytest.raises(trio.Cancelled):
                await store.get(reference)
        assert (await store.get(reference)).rootfs.is_dir()


async def test_a_local_image_that_has_changed_is_another_one(store: ImageStore, tmp_path: Path, reference: str) -> None:
    before = await store.get(reference)
    umoci("config", "--image", f"{tmp_path}/image:latest", "--config.user=daemon")
    after = await store.get(reference)
    assert (before.user, after.user) == ("nobody", "daemon")


async def test_docker_save_s_archives_are_images_too(store: ImageStore, tmp_path: Path, reference: str) -> None:
    archive = tmp_path / "saved.tar"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", reference, f"docker-archive:{archive}:hello:1"]
    await trio.run_process(copy, capture_stdout=True)
    image = await store.get(f"docker-archive:{archive}")
    assert (image.rootfs / "etc/greeting").read_bytes() == b"hello\n"


@pytest.mark.parametrize("text", ["", "oci:", "oci:relative:tag", "docker://", "-x", "a b", "a\0"])
async def test_what_is_no_reference_is_refused(store: ImageStore, text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await store.get(text)


async def test_a_file_that_is_not_there_is_named(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="No such file"):
        await store.get(f"docker-archive:{tmp_path}/none.tar")


async def test_a_file_that_is_no_image_is_refused_with_the_tool_s_reason(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive")
    with pytest.raises(GuestError, match=r"^skopeo: "):
        await store.get(f"docker-archive:{tmp_path}/x.tar")
    assert staged(store) == []


def test_names_are_taken_as_docker_pull_takes_them() -> None:
    assert Reference.parse("alpine:3").text == "docker://alpine:3"
    assert Reference.parse("docker://alpine").text == "docker://alpine"


# Layers that want out

ESCAPED = Path("/tmp/arcbox-escaped")  # noqa: S108  where they want to write


def is_passwd(path: Path) -> bool:
    return path.exists() and path.samefile("/etc/passwd")


def link_out(tar: tarfile.TarFile) -> None:
    add(tar, "out", type=tarfile.SYMTYPE, linkname="../../../../../../../..")
    add(tar, "out/tmp/arcbox-escaped", b"x")


def absolute_link_out(tar: tarfile.TarFile) -> None:
    add(tar, "out", type=tarfile.SYMTYPE, linkname="/")
    add(tar, "out/tmp/arcbox-escaped", b"x")


def dots_out(tar: tarfile.TarFile) -> None:
    add(tar, "../../../../../../../../../../tmp/arcbox-escaped", b"x")


def hard_link_out(tar: tarfile.TarFile) -> None:
    add(tar, "tmp", type=tarfile.DIRTYPE, mode=0o755)
    add(tar, "tmp/passwd", type=tarfile.LNKTYPE, linkname="../../../../../../../../etc/passwd")


@pytest.mark.parametrize("layer", [link_out, absolute_link_out, dots_out, hard_link_out])
async def test_no_layer_gets_out_of_its_root(
    store: ImageStore, tmp_path: Path, layer: Callable[[tarfile.TarFile], None]
) -> None:
    assert not ESCAPED.exists()
    try:
        image = await store.get(make_image(tmp_path / "hostile", layer))
    except GuestError:
        pass  # refused is fine
    else:
        assert not is_passwd(image.rootfs / "tmp/passwd")
    assert not ESCAPED.exists()


# What is done with those that are there


async def test_images_are_listed_and_removed_by_reference_or_digest(store: ImageStore, reference: str) -> None:
    image = await store.get(reference)
    (listed,) = await store.list()
    assert (listed.image, listed.references) == (image, (reference,))
    with pytest.raises(NotFoundError):
        await store.remove("sha256:abcdef0123", set())
    with pytest.raises(ConflictError, match="used by a sandbox"):
        await store.remove(reference, {image.digest})
    await store.remove(image.digest[:20], set())
    assert await store.list() == []
    assert list((store.directory / "refs").iterdir()) == []
    assert staged(store) == []


async def test_garbage_is_what_no_sandbox_has_and_nobody_asked_for_lately(store: ImageStore, reference: str) -> None:
    image = await store.get(reference)
    await store.collect_garbage(3600, set())
    assert len(await store.list()) == 1
    long_ago = time.time() - 7200
    os.utime(image.rootfs.parent, (long_ago, long_ago))
    await store.collect_garbage(3600, {image.digest})
    assert len(await store.list()) == 1
    await store.collect_garbage(3600, set())
    assert await store.list() == []


async def test_what_a_pull_that_was_killed_has_left_is_removed_with_its_program_once_nobody_else_pulls(
    store: ImageStore, tmp_path: Path, nursery: trio.Nursery
) -> None:
    parent = store.directory / "staging"
    other = Staging.make(parent)
    killed = parent / "killed"
    (killed / "image").mkdir(parents=True)
    sweep(parent)
    assert set(staged(store)) == {"killed", other.path.name}
    other.remove()
    with subprocess.Popen(["sleep", "1000"], cwd=killed) as program:  # noqa: S607, ASYNC220  ours
        nursery.start_soon(store.collect_periodically, 0, in_use_by_nobody)
        assert await trio.to_thread.run_sync(program.wait) == -signal.SIGKILL
    with trio.fail_after(20):
        await trio.lowlevel.checkpoint()
        while staged(store):  # noqa: ASYNC110  it tells nobody
            await trio.sleep(0.01)


async def in_use_by_nobody() -> frozenset[str]:
    await trio.lowlevel.checkpoint()
    return frozenset()


async def test_a_store_with_broken_files_goes_on(store: ImageStore, reference: str) -> None:
    await store.get(reference)
    for path in (store.directory / "refs").iterdir():
        path.write_text(json.dumps([1]))
    (store.directory / "images" / "00").mkdir()
    assert (await store.get(reference)).user == "nobody"
    assert len(await store.list()) == 1
