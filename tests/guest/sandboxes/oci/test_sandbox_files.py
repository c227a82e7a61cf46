"""Files of real sandboxes, with processes inside that do what they can to lead somebody out."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.errors import UnavailableError
from arcbox_guest.sandboxes import rooted_files
from arcbox_guest.sandboxes.model import BindMount, ExecSpec
from arcbox_guest.sandboxes.rooted_files import NewFile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.sandboxes.oci.conftest import Boxes

pytestmark = pytest.mark.parametrize("technique", ["crun"], indirect=True)  # it is the kernel that resolves paths

RACE = """
import os, itertools
for d in ("/real/deep/down", "/race"):
    os.makedirs(d)
os.symlink("../../../../../..", "/up")
print("ready", flush=True)
for number in itertools.count():
    # The directory that a path goes through becomes a link out, another directory, and moves below and up again.
    os.rename("/race", "/real/deep/race"); os.rename("/up", "/race")
    os.rename("/race", "/up"); os.rename("/real/deep/race", "/race")
    os.rename("/real/deep/down", "/real/moved"); os.rename("/real/moved", "/real/deep/down")
"""


def read(root: int, path: str) -> bytes:
    buffer = memoryview(bytearray(100))
    return bytes(buffer[: rooted_files.open_file(root, path).read_into(buffer)])


def write(root: int, path: str, data: bytes) -> None:
    file = NewFile.create(root, path)
    file.write([memoryview(data)])
    file.commit(0o644)


async def test_files_are_those_that_the_sandboxs_processes_see(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    box = await boxes(mounts=(BindMount(source=str(tmp_path / "shared"), target="/mnt"),))
    with box.driver.root("box") as root:
        for path in ("/tmp/file", "/dev/shm/file", "/mnt/file"):
            write(root, path, path.encode())
            assert (await box.run("cat", path)).text == path
        await box.sh("echo from inside > /dev/shm/other")
        assert read(root, "/dev/shm/other") == b"from inside\n"
    assert (tmp_path / "shared" / "file").read_text() == "/mnt/file"
    assert (await box.run("stat", "-c", "%u:%g %a", "/tmp/file")).text == "0:0 644\n"


async def test_what_the_file_system_refuses_is_refused(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    mounts = [BindMount(source=str(tmp_path), target="/mnt", readonly=True)]
    box = await boxes(mounts=(*mounts, BindMount(source=str(tmp_path / "file"), target="/tree/single")))
    with box.driver.root("box") as root:
        with pytest.raises(OSError, match="Read-only"):
            write(root, "/mnt/file", b"")
        with pytest.raises(OSError, match="Read-only"):
            rooted_files.remove(root, "/mnt/file", recursive=True)
        for path in ("/mnt", "/dev/shm", "/dev", "/tree"):
            with pytest.raises(OSError, match="mounted"):
                rooted_files.remove(root, path, recursive=True)
        for path in ("/mnt", "/dev/shm", "/tree/single"):
            with pytest.raises(OSError, match="mounted"):
                rooted_files.move(root, path, "/elsewhere")
        with pytest.raises(OSError, match="mounted"):
            write(root, "/tree/single", b"")
        assert (await box.sh("cat /mnt/file /tree/single; grep -q ' /dev/shm ' /proc/mounts")).text == "keptkept"
        with pytest.raises(OSError, match=r"Read-only|No such file|not permitted"):
            write(root, "/proc/sys/kernel/core_pattern", b"|/evil")


async def test_what_is_no_file_is_not_opened(boxes: Boxes) -> None:
    box = await boxes()
    await box.sh("mkfifo /fifo; mknod /console c 5 1; mknod /disk b 7 0; ln -s /dev/zero /zero")
    with box.driver.root("box") as root:
        for path in ("/fifo", "/console", "/disk", "/zero", "/dev/null"):
            with pytest.raises(OSError, match="not a regular file"):
                read(root, path)
            with pytest.raises(OSError, match="not a regular file"):
                write(root, path, b"")
        for path in ("/proc/self/root/etc/passwd", "/proc/1/root/etc/passwd", "/proc/1/cwd/etc/passwd", "/proc/1/exe"):
            with pytest.raises(OSError, match=r"Too many levels|No such file"):
                read(root, path)


async def test_whoever_renames_meanwhile_leads_nobody_out(boxes: Boxes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("outside")
    box = await boxes(with_python=True)
    await box.sh(f"mkdir -p {tmp_path}; echo -n inside > {secret}")
    race = ExecSpec(argv=(sys.executable, "-I", "-S", "-c", RACE))
    paths = [f"/race{secret}", f"/race/../..{secret}", f"/real/deep/down/../../../..{secret}", f"/up{secret}"]
    async with box.driver.process("box", race) as process:
        assert bytes(await process.stdout.receive()) == b"ready\n"
        with box.driver.root("box") as root:
            seen = await trio.to_thread.run_sync(partial(attack, root, paths, secret.name))
    assert seen <= {b"inside", b"written"}
    assert b"inside" in seen or b"written" in seen
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["secret"]
    assert secret.read_text() == "outside"


def attack(root: int, paths: list[str], name: str) -> set[bytes]:
    """Read, write and remove by paths that change all the time; what was read."""
    seen = set()
    for number in range(400):
        path = paths[number % len(paths)]
        with suppress(OSError):
            seen.add(read(root, path))
        with suppress(OSError):
            write(root, path, b"written")
        with suppress(OSError):
            rooted_files.make_directory(root, path.replace(name, f"made-{number}"), 0o755)
        with suppress(OSError):
            rooted_files.remove(root, path.replace(name, f"made-{number - 8}"), recursive=True)
    return seen


async def test_the_root_of_a_sandbox_whose_init_is_gone_is_not_that_of_another_process(boxes: Boxes) -> None:
    box = await boxes()
    boxes.world.kill_init("box")
    await box.driver.ended("box")
    with pytest.raises(UnavailableError), box.driver.root("box"):
        pass
