"""Directories and files of the guest in a sandbox, and paths that try to get out of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_guest.errors import GuestError, InvalidArgumentError
from arcbox_guest.sandboxes.busybox import build
from arcbox_guest.sandboxes.model import BindMount, ResourceLimits, Spec
from tests.guest.sandboxes.oci.conftest import Box

if TYPE_CHECKING:
    from tests.guest.sandboxes.oci.conftest import Boxes, World


@pytest.fixture
def technique() -> str:
    """One runtime: what is tested here is done before it is called."""
    return "crun"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the guest's, with a file."""
    path = tmp_path / "shared"
    path.mkdir()
    (path / "file").write_text("of the guest\n")
    return path


def bind(source: Path | str, target: str, *, readonly: bool = False) -> tuple[BindMount, ...]:
    return (BindMount(source=str(source), target=target, readonly=readonly),)


async def test_a_directory_is_the_same_inside_and_outside(boxes: Boxes, shared: Path) -> None:
    box = await boxes(mounts=bind(shared, "/srv/deep/shared"))
    assert (await box.run("cat", "/srv/deep/shared/file")).text == "of the guest\n"
    await box.sh("echo inside >/srv/deep/shared/new")
    assert (shared / "new").read_text() == "inside\n"
    (shared / "later").write_text("outside\n")
    assert (await box.run("cat", "/srv/deep/shared/later")).text == "outside\n"


async def test_what_is_read_only_can_not_be_written_by_any_way(boxes: Boxes, shared: Path) -> None:
    box = await boxes(mounts=bind(shared, "/shared", readonly=True))
    for script in ("echo x >/shared/file", "rm /shared/file", "mount -o remount,rw /shared", "chmod 777 /shared"):
        assert (await box.sh(script)).exit_code != 0
    assert (shared / "file").read_text() == "of the guest\n"


async def test_what_is_mounted_below_a_read_only_source_is_read_only_too(boxes: Boxes, shared: Path) -> None:
    box = await boxes(mounts=bind("/sys", "/mnt/sys", readonly=True))
    lines = (await box.run("cat", "/proc/self/mountinfo")).text.splitlines()
    below = [line.split() for line in lines if line.split()[4].startswith("/mnt/sys")]
    assert below
    assert all("ro" in fields[5].split(",") for fields in below)


async def test_a_file_can_be_mounted_over_a_file(boxes: Boxes, shared: Path) -> None:
    box = await boxes(mounts=bind(shared / "file", "/etc/hosts"))
    assert (await box.run("cat", "/etc/hosts")).text == "of the guest\n"


async def test_mounts_are_made_in_their_order_one_below_another(boxes: Boxes, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("of the other\n")
    box = await boxes(mounts=bind(shared, "/mnt") + bind(tmp_path / "other" / "file", "/mnt/file"))
    assert (await box.run("cat", "/mnt/file")).text == "of the other\n"
    assert (shared / "file").read_text() == "of the guest\n"


async def test_a_socket_can_be_handed_in(boxes: Boxes, tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        box = await boxes(mounts=bind(tmp_path / "s", "/run/service"))
        assert (await box.run("test", "-S", "/run/service")).exit_code == 0


async def test_links_in_the_source_are_followed_in_the_guest(boxes: Boxes, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shared)
    box = await boxes(mounts=bind(tmp_path / "link", "/shared"))
    assert (await box.run("cat", "/shared/file")).text == "of the guest\n"


@pytest.mark.parametrize("kind", ["missing", "fifo", "device"])
async def test_a_source_that_can_not_be_mounted_is_an_error_with_its_name(
    boxes: Boxes, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "source"
    if kind == "fifo":
        os.mkfifo(source)
    elif kind == "device":
        source = Path("/dev/zero")
    with pytest.raises(InvalidArgumentError, match=str(source)):
        await boxes(mounts=bind(source, "/mnt"))


@pytest.mark.parametrize(
    "target",
    ["/", "/..", "/.", "/proc", "/proc/self", "/sys/fs", "/dev", "/dev/init", "/tmp/../proc", "/mnt/../dev/null"],
)
async def test_what_the_sandbox_needs_can_not_be_covered(boxes: Boxes, shared: Path, target: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await boxes(mounts=bind(shared, target))


@pytest.mark.parametrize(
    ("link", "target", "seen"),
    [
        ("/escape -> ../../../../..", "/escape/tmp/x", "/tmp/x"),
        ("/escape -> /", "/escape/tmp/x", "/tmp/x"),
        ("/escape -> /tmp/not-yet", "/escape/x", None),
        ("/escape -> /escape", "/escape/x", None),
        ("/escape -> /proc/1/root", "/escape/x", None),
        ("/escape -> /dev/shm", "/escape", None),
        ("/escape -> /proc", "/escape/sys", None),
    ],
)
async def test_links_in_the_target_lead_nowhere_but_inside(  # noqa: PLR0917  parameters of a test
    boxes: Boxes, shared: Path, tmp_path: Path, link: str, target: str, seen: str | None
) -> None:
    root = tmp_path / "tree"
    build(root)
    name, _, to = link.partition(" -> ")
    (root / name.lstrip("/")).symlink_to(to)
    if seen is None:
        with pytest.raises(GuestError):
            await boxes(rootfs=str(root), mounts=bind(shared, target))
    else:
        box = await boxes(rootfs=str(root), mounts=bind(shared, target))
        assert (await box.run("cat", f"{seen}/file")).text == "of the guest\n"
    # What others do in there meanwhile is their affair.
    assert not {"x", "not-yet"} & set(os.listdir("/tmp"))
    assert not (root / "tmp" / "x").exists()


async def test_links_in_a_source_that_was_mounted_before_lead_nowhere_but_inside(
    boxes: Boxes, shared: Path, tmp_path: Path
) -> None:
    """Other sandboxes may write there: what the runtime was told as a path would be followed by it."""
    (shared / "link").symlink_to("/etc")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("")
    box = await boxes(mounts=bind(shared, "/mnt") + bind(other, "/mnt/link/arcbox-test"))
    assert (await box.run("ls", "/etc/arcbox-test")).text == "mine\n"
    assert not Path("/etc/arcbox-test").exists()


async def test_a_directory_can_not_cover_a_file_nor_a_file_a_directory(boxes: Boxes, shared: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is a file"):
        await boxes("a", mounts=bind(shared, "/etc/passwd"))
    with pytest.raises(InvalidArgumentError, match="is a directory"):
        await boxes("b", mounts=bind(shared / "file", "/etc"))
    with pytest.raises(InvalidArgumentError, match="/etc/passwd/below"):
        await boxes("c", mounts=bind(shared, "/etc/passwd/below"))


@pytest.mark.parametrize("name", ["with space", "a:b,c\\d", "line\nbreak", "é", "-o", "%s"])
async def test_odd_names_are_only_names(boxes: Boxes, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("here")
    box = await boxes(mounts=bind(tmp_path / name, f"/mnt/{name}"))
    assert (await box.run("cat", f"/mnt/{name}/file")).text == "here"


async def test_the_directory_of_all_sandboxes_may_have_an_odd_name(world: World, tmp_path: Path) -> None:
    world.driver.data_dir = tmp_path / "a:b,c\\d e"
    await world.driver.create(Spec(id="box", rootfs=world.rootfs, limits=ResourceLimits(vcpus=1, memory_mib=64)))
    assert (await Box(world.driver, "box").run("echo", "here")).text == "here\n"
    await world.driver.destroy("box")
    assert world.leftovers() == []


async def test_a_name_that_is_too_long_is_an_error(boxes: Boxes, shared: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="name too long"):
        await boxes(mounts=bind(shared, "/" + "x" * 256))


@pytest.mark.parametrize("working_dir", ["/..", "/../..", "..", "/tmp/../../.."])
async def test_dots_in_a_working_directory_end_at_the_root(boxes: Boxes, working_dir: str) -> None:
    box = await boxes()
    assert (await box.run("ls", "bin/busybox", working_dir=working_dir)).text == "bin/busybox\n"


async def test_a_working_directory_behind_a_link_is_inside(boxes: Boxes) -> None:
    box = await boxes()
    await box.sh("ln -s ../../../../tmp /link; mkdir /tmp/inside; ln -s /proc/1/root/etc /magic")
    assert (await box.run("ls", working_dir="/link")).text == "inside\n"
    for path in ("/link/nowhere", "/etc/passwd"):
        with pytest.raises(InvalidArgumentError, match=path):
            await box.run("ls", working_dir=path)


async def test_a_working_directory_that_may_not_be_entered_is_told(boxes: Boxes) -> None:
    box = await boxes()
    await box.sh("mkdir -m 700 /secret")
    result = await box.run("ls", working_dir="/secret", user="nobody")
    assert result.exit_code != 0
