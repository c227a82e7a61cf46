"""The data volume: a Btrfs on a disk of its own, with a subvolume for each directory of the container runtime.

A blank disk is formatted. What holds anything else is refused, and not one byte of it is changed: whether it does is
asked of libblkid (blkid -p), and a disk without any signature must also be free of other bytes than zero.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field, frozen

from arcbox_guest import linux, mountinfo
from arcbox_guest.errors import ConflictError, GuestError, NotFoundError, NotSupportedError
from arcbox_guest.kernel_command_line import parameter
from arcbox_guest.tools import run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from arcbox_guest.tools import ToolResult

log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFAULT_DEVICES: Final = ("/dev/arcboxhvc1", "/dev/vdb")
"""Looked for in this order where the kernel command line names no device."""

SUBVOLUMES: Final = {
    "@docker": "docker",
    "@containerd": "containerd",
    "@k3s": "rancher/k3s",
    "@kubelet": "kubelet",
    "@cni": "cni",
}
"""The directory below /var/lib of each subvolume."""

_WITHOUT_COW: Final = (
    "@containerd/io.containerd.metadata.v1.bolt",
    "@docker/buildkit",
    "@docker/network",
    "@k3s/server/db",
)
"""Directories of databases that are written in place, which copy-on-write would scatter over the disk."""

_MOUNT_OPTIONS: Final = "compress=zstd:3,discard=async"

_TEMPORARY_SUPERBLOCK: Final = (64 * 1024 + 0x40, b"!BHRfS_M")
"""Offset and magic number that mkfs.btrfs begins with; it is replaced when all the rest is written."""

_HEAD: Final = 8 * 1024 * 1024
_TAIL: Final = 1024 * 1024
_SAMPLES: Final = 64
_SAMPLE: Final = 64 * 1024
"""Bytes at the start, at the end, and in so many places between that must be zero on a blank disk."""

_TOOL_TIMEOUT: Final = 60.0
_MKFS_TIMEOUT: Final = 300.0
"""Seconds. mkfs discards the whole disk first."""

_BLKID_NOTHING: Final = 2
_BLKID_AMBIVALENT: Final = 8

_FS_IOC_GETFLAGS: Final = 0x8008_6601
_FS_IOC_SETFLAGS: Final = 0x4008_6602
_FS_NOCOW_FL: Final = 0x0080_0000
"""ioctl_iflags(2)."""

_BLKGETSIZE64: Final = 0x8008_1272
_LONG: Final = Struct("=q")

_IN_MEMORY: Final = ("tmpfs", "ramfs", "rootfs")


@frozen
class VolumeState:
    """Where the directories are."""

    device: str | None
    """None for plain directories."""

    detail: str
    """For people."""


@define(eq=False)
class DataVolume:
    """The data volume of this guest."""

    _mount_point: Path
    """Where the whole of it is mounted."""

    _base: Path = Path("/var/lib")
    """Where the directories are."""

    _device: str = "auto"
    """A device; `auto`: the kernel command line's, else the first that is there of `DEFAULT_DEVICES`; `none`: plain
    directories on the root file system."""

    _state_dir: Path = Path("/run/arcbox")
    """Remembers, for as long as the machine runs, which disk is being formatted."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(2))
    _one_at_a_time: trio.Lock = field(init=False, factory=trio.Lock)

    async def prepare(self) -> VolumeState:
        """Have the directories there, on the data volume if there is one. Nothing new when they are.

        Raises:
            ConflictError: the disk holds something else.
            NotFoundError: the disk that was named is not there.
            NotSupportedError: there is no disk, and the root file system does not do.
            GuestError: it can't be formatted, or mounted.
        """
        async with self._one_at_a_time:
            device = await self._in_thread(self._find_device)
            if device is None:
                await self._in_thread(self._plain_directories)
                return VolumeState(None, f"no data device: plain directories in {self._base}")
            if not await self._in_thread(self._is_mounted):
                await self._format_if_blank(device)
                await self._in_thread(self._mount, device)
            await self._grow(device)
            await self._subvolumes()
            await self._in_thread(self._bind)
            return VolumeState(device, f"data volume on {device}")

    def _find_device(self) -> str | None:
        if self._device == "none":
            return None
        named = self._device if self._device != "auto" else parameter("arcbox.docker_data_device")
        for device in DEFAULT_DEVICES if named is None else (named,):
            if Path(device).exists():
                if not stat.S_ISBLK(Path(device).stat().st_mode):
                    raise ConflictError(f"{device} is no block device")
                return device
        if named is not None:
            raise NotFoundError(f"the data device {named} is not there")
        return None

    def _plain_directories(self) -> None:
        kind, readonly = _file_system(self._base)
        if kind in _IN_MEMORY or readonly:
            why = "read-only" if readonly else f"a {kind}, in memory"
            raise NotSupportedError(f"there is no data device, and the file system of {self._base} is {why}")
        for directory in SUBVOLUMES.values():
            (self._base / directory).mkdir(parents=True, exist_ok=True)

    def _is_mounted(self) -> bool:
        return self._mount_point.is_mount()

    async def _format_if_blank(self, device: str) -> None:
        found = await self._tool("blkid", "-p", "-o", "export", device)
        values = dict(line.split("=", 1) for line in found.output.splitlines() if "=" in line)
        if found.status == 0 and values.get("TYPE") == "btrfs":
            return
        if found.status == 0:
            raise ConflictError(f"{device} is not blank and is left as it is: it holds {_describe(values)}")
        if found.status == _BLKID_AMBIVALENT:
            raise ConflictError(f"{device} is not blank and is left as it is: it holds several signatures")
        if found.status != _BLKID_NOTHING:
            raise GuestError(f"{device} can't be probed: {found.last_line}")
        unfinished = self._state_dir / "data-volume.formatting"
        await self._in_thread(self._check_blank, device, unfinished)
        log.info("formatting the data volume", extra={"device": device})
        made = await self._tool("mkfs.btrfs", "--quiet", "--label", "arcbox-data", device, timeout=_MKFS_TIMEOUT)
        if made.status != 0:
            raise GuestError(f"{device} can't be formatted: {made.last_line}")
        await self._in_thread(unfinished.unlink)

    def _check_blank(self, device: str, unfinished: Path) -> None:
        """Raise ConflictError unless there is nothing on a disk, or only the beginning of our own file system.

        O_EXCL on a block device fails with EBUSY while anybody has it mounted or claimed: open(2).
        """
        try:
            opened = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise ConflictError(f"{device} is in use") from error
            raise
        try:
            size = _size(opened)
            identity = f"{device} {os.fstat(opened).st_rdev} {size}\n"
            offset, magic = _TEMPORARY_SUPERBLOCK
            ours = os.pread(opened, len(magic), offset) == magic or _says(unfinished, identity)
            if not ours and not _is_zero(opened, size):
                raise ConflictError(f"{device} is not blank and is left as it is: it holds data of no known kind")
        finally:
            os.close(opened)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(identity)

    def _mount(self, device: str) -> None:
        self._mount_point.mkdir(parents=True, exist_ok=True)
        try:
            linux.mount(device, str(self._mount_point), "btrfs", 0, _MOUNT_OPTIONS)
        except OSError as error:
            raise GuestError(f"{device} can't be mounted: {error.strerror}") from error

    async def _grow(self, device: str) -> None:
        grown = await self._tool("btrfs", "filesystem", "resize", "max", str(self._mount_point))
        if grown.status != 0:
            log.warning("data volume not grown", extra={"device": device, "reason": grown.last_line})

    async def _subvolumes(self) -> None:
        for name in SUBVOLUMES:
            path = self._mount_point / name
            if not await self._in_thread(path.exists):
                made = await self._tool("btrfs", "subvolume", "create", str(path))
                if made.status != 0:
                    raise GuestError(f"the subvolume {name} can't be made: {made.last_line}")
        for directory in _WITHOUT_COW:
            await self._in_thread(_make_without_cow, self._mount_point / directory)

    def _bind(self) -> None:
        for name, directory in SUBVOLUMES.items():
            source, target = self._mount_point / name, self._base / directory
            target.mkdir(parents=True, exist_ok=True)
            if not source.samefile(target):
                linux.mount(str(source), str(target), None, linux.MS_BIND)

    async def _tool(self, *argv: str, timeout: float = _TOOL_TIMEOUT) -> ToolResult:  # noqa: ASYNC109  as run_tool
        return await run_tool(*argv, timeout=timeout, limiter=self._limiter)

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        """A disk may hang: whoever is cancelled does not wait for it."""
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=self._limiter, abandon_on_cancel=True)
        except OSError as error:
            raise GuestError(f"the data volume can't be prepared: {error}") from error


def _describe(values: Mapping[str, str]) -> str:
    """What libblkid found, as in "ext4" or "a dos partition table"."""
    if "PTTYPE" in values:
        return f"a {values['PTTYPE']} partition table"
    return values.get("TYPE", "a signature that blkid has no name for")


def _says(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def _size(block_device: int) -> int:
    buffer = bytearray(_LONG.size)
    fcntl.ioctl(block_device, _BLKGETSIZE64, buffer)
    return int(_LONG.unpack(buffer)[0])


def _is_zero(opened: int, size: int) -> bool:
    return all(not os.pread(opened, length, offset).strip(b"\0") for offset, length in _places(size) if length > 0)


def _places(size: int) -> Sequence[tuple[int, int]]:
    """Offset and length of what is looked at."""
    head, tail = min(_HEAD, size), max(0, size - _TAIL)
    samples = [(size * number // _SAMPLES, _SAMPLE) for number in range(_SAMPLES)]
    return [(0, head), (tail, size - tail), *samples]


def _make_without_cow(directory: Path) -> None:
    """Make a directory whose files are written in place. An existing one is left as it is: its files have their way."""
    if directory.exists():
        return
    directory.mkdir(mode=0o711, parents=True)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(_LONG.size)
        fcntl.ioctl(opened, _FS_IOC_GETFLAGS, flags)
        fcntl.ioctl(opened, _FS_IOC_SETFLAGS, _LONG.pack(_LONG.unpack(flags)[0] | _FS_NOCOW_FL))
    finally:
        os.close(opened)


def _file_system(path: Path) -> tuple[str, bool]:
    """The type of the file system that a path is on, or will be, and whether it is read-only: proc_pid_mountinfo(5)."""
    while not path.exists():
        path = path.parent
    best, kind = -1, "unknown"
    for mount in mountinfo.mounts(mountinfo.OWN.read_bytes()):
        point = Path(mount.target)
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), mount.kind
    return kind, bool(os.statvfs(path).f_flag & os.ST_RDONLY)
