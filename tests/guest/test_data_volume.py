"""The data volume, on loop devices of real images."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from arcbox_guest.data_volume import SUBVOLUMES, DataVolume
from arcbox_guest.errors import ConflictError, GuestError, NotFoundError, NotSupportedError
from arcbox_guest.kernel_command_line import parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
SIZE = 160 * MIB
"""Bytes; Btrfs takes 109 MiB at least."""

SUPERBLOCK_MAGIC = 64 * 1024 + 0x40


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("loop devices take root")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def device(image: Path) -> Iterator[str]:
    attached = run("losetup", "--find", "--show", str(image)).strip()
    yield attached
    run("losetup", "--detach", attached)


@pytest.fixture
def volume(device: str, tmp_path: Path) -> Iterator[DataVolume]:
    yield DataVolume(tmp_path / "data", tmp_path / "lib", device, tmp_path / "state")
    for mount in reversed(mounts_below(tmp_path)):
        run("umount", mount)


def mounts_below(directory: Path) -> list[str]:
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [mount for mount in mounts if mount.startswith(f"{directory}/")]


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout  # noqa: S603  a tool of the system, and a path of this test's


def digest(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def attributes(path: Path) -> str:
    return run("lsattr", "-d", str(path)).split()[0]


async def test_a_blank_disk_is_formatted_and_its_directories_are_there(volume: DataVolume, tmp_path: Path) -> None:
    state = await volume.prepare()
    assert state.device is not None
    for name, directory in SUBVOLUMES.items():
        (tmp_path / "lib" / directory / "file").write_text(name)
        assert (tmp_path / "data" / name / "file").read_text() == name
        assert (tmp_path / "data" / name).stat().st_ino == 256  # the root of a subvolume
    options = run("findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", str(tmp_path / "data"))
    assert "btrfs" in options
    assert "compress=zstd:3" in options
    assert "discard=async" in options
    assert "C" in attributes(tmp_path / "lib/containerd/io.containerd.metadata.v1.bolt")
    assert "C" not in attributes(tmp_path / "lib/docker")


async def test_the_next_agent_finds_it_as_it_was_and_mounts_nothing_twice(volume: DataVolume, tmp_path: Path) -> None:
    await volume.prepare()
    (tmp_path / "lib/docker/file").write_text("kept")
    mounts = mounts_below(tmp_path)
    again = DataVolume(volume._mount_point, volume._base, volume._device, volume._state_dir)
    await again.prepare()
    assert (tmp_path / "lib/docker/file").read_text() == "kept"
    assert mounts_below(tmp_path) == mounts


async def test_it_grows_with_its_disk(volume: DataVolume, device: str, image: Path, tmp_path: Path) -> None:
    await volume.prepare()
    before = os.statvfs(tmp_path / "data").f_blocks
    os.truncate(image, 2 * SIZE)
    run("losetup", "--set-capacity", device)
    await volume.prepare()
    assert os.statvfs(tmp_path / "data").f_blocks == 2 * before


def luks(image: Path) -> None:
    put(image, 0, b"LUKS\xba\xbe\0\1" + b"aes".ljust(32, b"\0"))


def partitions(image: Path) -> None:
    put(image, 446, struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0x83, 0, 8, 0, 2048, 65536) + bytes(48) + b"\x55\xaa")


def lvm(image: Path) -> None:
    body = struct.pack("<I8s", 32, b"LVM2 001") + b"0123456789abcdef0123456789abcdef".ljust(480, b"\0")
    checksum = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF  # LVM's: another start, and not inverted
    put(image, 512, b"LABELONE" + struct.pack("<QI", 1, checksum) + body)


def md_member(image: Path) -> None:
    start = struct.pack("<IIII16s32s", 0xA92B4EFC, 1, 0, 0, UUID(int=7).bytes, b"name")
    put(image, 4096, start.ljust(144, b"\0") + struct.pack("<Q", 8))  # the sector where it is


def put(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


OTHERS: dict[str, Callable[[Path], object]] = {
    "ext4": lambda image: run("mkfs.ext4", "-q", "-F", str(image)),
    "swap": lambda image: run("mkswap", str(image)),
    "crypto_LUKS": luks,
    "dos partition table": partitions,
    "LVM2_member": lvm,
    "linux_raid_member": md_member,
    "data of no known kind": lambda image: put(image, 15 * MIB, os.urandom(MIB)),
}


@pytest.mark.parametrize("kind", OTHERS)
async def test_a_disk_that_holds_anything_else_is_refused_by_name_and_not_touched(
    kind: str, image: Path, tmp_path: Path
) -> None:
    os.truncate(image, 32 * MIB)
    OTHERS[kind](image)
    before = digest(image)
    device = run("losetup", "--find", "--show", str(image)).strip()
    try:
        volume = DataVolume(tmp_path / "data", tmp_path / "lib", device, tmp_path / "state")
        with pytest.raises(ConflictError, match=f"{device} is not blank .* {kind}"):
            await volume.prepare()
    finally:
        run("losetup", "--detach", device)
    assert digest(image) == before


async def test_a_format_that_did_not_end_is_done_again(volume: DataVolume, device: str, tmp_path: Path) -> None:
    """The state in which mkfs.btrfs leaves a disk that is taken from it: its superblock is a temporary one."""
    run("mkfs.btrfs", "--quiet", device)
    put(Path(device), SUPERBLOCK_MAGIC, b"!BHRfS_M")
    await volume.prepare()
    assert (tmp_path / "lib/docker").is_dir()


async def test_a_disk_that_fails_while_it_is_formatted_is_named_and_can_be_tried_again(
    volume: DataVolume, device: str, tmp_path: Path
) -> None:
    run("blockdev", "--setro", device)
    with pytest.raises(GuestError, match=f"{device} can't be formatted: .*"):
        await volume.prepare()
    run("blockdev", "--setrw", device)
    put(Path(device), 20 * MIB, b"what mkfs wrote before it failed")
    await volume.prepare()
    assert (tmp_path / "lib/docker").is_dir()


async def test_a_disk_that_somebody_else_has_is_left_alone(volume: DataVolume, device: str) -> None:
    taken = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(ConflictError, match="is in use"):
            await volume.prepare()
    finally:
        os.close(taken)


async def test_a_disk_that_was_named_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    volume = DataVolume(tmp_path / "data", tmp_path / "lib", "/dev/nowhere", tmp_path / "state")
    with pytest.raises(NotFoundError, match="/dev/nowhere is not there"):
        await volume.prepare()


async def test_without_a_disk_plain_directories_do_and_the_status_says_so(tmp_path: Path) -> None:
    state = await DataVolume(tmp_path / "data", tmp_path / "lib", "none", tmp_path / "state").prepare()
    assert state.device is None
    assert state.detail == f"no data device: plain directories in {tmp_path}/lib"
    assert (tmp_path / "lib/rancher/k3s").is_dir()


async def test_without_a_disk_a_file_system_in_memory_does_not_do(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="a tmpfs, in memory"):
        await DataVolume(
            tmp_path / "data",
            Path("/dev/shm/arcbox-nothing"),  # noqa: S108  nothing is made there
            "none",
            tmp_path / "state",
        ).prepare()


def test_the_kernel_command_line_names_the_disk(tmp_path: Path) -> None:
    command_line = tmp_path / "cmdline"
    command_line.write_text("quiet arcbox.docker_data_device=/dev/vdc root=/dev/vda arcbox.docker_data_device= x\n")
    assert parameter("arcbox.docker_data_device", command_line) is None
    assert parameter("root", command_line) == "/dev/vda"
    assert parameter("init", command_line) is None
    assert parameter("root", tmp_path / "nowhere") is None
