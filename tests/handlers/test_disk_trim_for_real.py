"""DiskTrim on real file systems: what it trims comes back from the files that are their disks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import define, field, frozen

from arcbox_guest.disks import Disks, fitrim
from arcbox_guest.errors import GuestError
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Context, error_reply
from arcbox_handlers.disks import DiskTrim
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
DELETED = 48 * MIB
PACKAGES = {"ext4": "e2fsprogs", "btrfs": "btrfs-progs"}


def run(*command: str | Path, check: bool = True) -> str:
    """What a command prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  our own commands
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


@frozen
class Workbench:
    """Makes and mounts file systems in a temporary directory; all of it is undone after the test."""

    _directory: Path
    _cleanup: ExitStack

    def image(self, kind: str, directory: Path | None = None) -> Path:
        """A sparse file with an empty file system of that kind; in the temporary directory by default."""
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"needs mkfs.{kind}, of the package {PACKAGES[kind]}")
        image = (directory or self._directory) / f"{kind}.img"
        with image.open("wb") as file:
            file.truncate(256 * MIB)
        run(f"mkfs.{kind}", "-q", image)
        return image

    def attach(self, image: Path) -> Path:
        """A loop device for an image."""
        device = run("losetup", "--find", "--show", image)
        self._cleanup.callback(run, "losetup", "--detach", device)
        return Path(device)

    def mount(self, name: str, source: str | Path, *options: str) -> Path:
        """A directory with something mounted on it."""
        target = self._directory / name
        target.mkdir()
        run("mount", *options, source, target)
        self._cleanup.callback(run, "umount", "--lazy", target)
        return target

    def disk(self, kind: str) -> tuple[Path, Path]:
        """A mounted disk with blocks that its file system has freed and its device not, and the file that it is."""
        image = self.image(kind)
        # With the mount option discard, Btrfs's default, the blocks would be given back without a trim.
        mount = self.mount(kind, self.attach(image), "--options", "nodiscard")
        large = mount / "large"
        large.write_bytes(os.urandom(DELETED))
        run("sync", "--file-system", mount)
        large.unlink()
        run("sync", "--file-system", mount)
        return mount, image

    def disk_without_discard(self) -> Path:
        """A mounted disk that can't be trimmed: it is a file in memory, and ramfs can't give up parts of a file."""
        memory = self.mount("memory", "arcbox-test", "--types", "ramfs")
        return self.mount("no-discard", self.attach(self.image("ext4", memory)))


@pytest.fixture
def workbench(may_mount: None, tmp_path: Path) -> Iterator[Workbench]:
    found = subprocess.run(["losetup", "--find"], check=False, capture_output=True, text=True)  # noqa: S607  from PATH
    if found.returncode != 0:
        pytest.skip(f"no loop device can be had here: {found.stderr.strip()}")
    with ExitStack() as cleanup:
        yield Workbench(tmp_path, cleanup)


@define
class CountedFitrim:
    """The real FITRIM, counted."""

    calls: int = field(default=0)

    def __call__(self, directory: int) -> int:
        self.calls += 1
        return fitrim(directory)


async def disk_trim(*mounts: Path, counted: CountedFitrim | None = None) -> str:
    """The result of the command, with these mounts as the setting."""
    disks = Disks([str(mount) for mount in mounts], fitrim=counted or fitrim)
    context = Context(guest=fake_guest(disks=disks), version="0")
    return (await DiskTrim(arcbox_v1.DiskTrimRequest())(context)).result


def allocated(file: Path) -> int:
    """The bytes that a file really takes."""
    return file.stat().st_blocks * 512


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
async def test_a_trim_shrinks_the_file_behind_the_disk_and_tells_how_much(workbench: Workbench, kind: str) -> None:
    mount, image = workbench.disk(kind)
    before = allocated(image)
    assert before > DELETED
    result = await disk_trim(mount)
    assert allocated(image) < before - DELETED * 0.9
    told = re.fullmatch(rf"{re.escape(str(mount))}: (\d+) bytes trimmed", result)
    assert told is not None
    assert int(told[1]) >= DELETED * 0.9


async def test_the_subvolumes_of_a_btrfs_are_one_file_system(workbench: Workbench) -> None:
    disk, image = workbench.disk("btrfs")
    for subvolume in ("@docker", "@containerd"):
        run("btrfs", "subvolume", "create", disk / subvolume)
    docker = workbench.mount("docker", disk / "@docker", "--bind")
    again = workbench.mount("again", disk / "@docker", "--bind")
    containerd = workbench.mount("containerd", disk / "@containerd", "--bind")
    before = allocated(image)
    counted = CountedFitrim()
    result = await disk_trim(docker, containerd, again, disk, counted=counted)
    assert counted.calls == 1
    assert re.fullmatch(rf"{re.escape(str(docker))}: \d+ bytes trimmed", result)
    assert allocated(image) < before - DELETED * 0.9


async def test_a_file_system_mounted_twice_is_trimmed_once_and_two_of_them_are_two(workbench: Workbench) -> None:
    ext4, _ = workbench.disk("ext4")
    btrfs, _ = workbench.disk("btrfs")
    again = workbench.mount("again", ext4, "--bind")
    counted = CountedFitrim()
    result = await disk_trim(ext4, again, btrfs, counted=counted)
    assert counted.calls == 2
    first, second = result.split("; ")
    assert first.startswith(f"{ext4}: ")
    assert second.startswith(f"{btrfs}: ")


async def test_a_disk_without_discard_says_so_beside_one_that_is_trimmed(workbench: Workbench) -> None:
    good, _ = workbench.disk("btrfs")
    bad = workbench.disk_without_discard()
    result = await disk_trim(bad, good)
    assert re.fullmatch(rf"{bad}: discard not supported; {good}: \d+ bytes trimmed", result)


async def test_when_no_disk_can_be_trimmed_the_command_fails_with_every_part(workbench: Workbench) -> None:
    bad = workbench.disk_without_discard()
    no_disk = workbench.mount("no-disk", "arcbox-test", "--types", "tmpfs")
    with pytest.raises(GuestError) as failure:
        await disk_trim(bad, no_disk)
    assert str(failure.value) == f"{bad}: discard not supported; {no_disk}: discard not supported"
    reply = error_reply(failure.value)
    assert reply is not None
    assert reply.code == 500


async def test_a_disk_that_is_not_mounted_is_no_data_volume(workbench: Workbench, tmp_path: Path) -> None:
    mount, image = workbench.disk("ext4")
    run("umount", mount)
    before = allocated(image)
    assert await disk_trim(mount, tmp_path / "missing") == "no data volume mounted"
    assert allocated(image) == before
    run("mount", "--types", "tmpfs", "arcbox-test", mount)  # what the workbench unmounts
