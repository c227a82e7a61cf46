"""Root file systems in image files: each mounted once, read-only, for all sandboxes that are made of it."""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import contextmanager, suppress
from fcntl import ioctl
from itertools import count
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest import linux
from arcbox_guest.errors import GuestError, InvalidArgumentError
from arcbox_guest.sandboxes.oci.mounts import MountStack
from arcbox_guest.sandboxes.oci.root_files import open_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arcbox_guest.sandboxes.oci.namespace import MountNamespace

_MAGIC: Final = (("ext4", 1080, b"\x53\xef"), ("erofs", 1024, b"\xe2\xe1\xf5\xe0"), ("squashfs", 0, b"hsqs"))
"""Of each kind of file system: where in it, and what. The drivers named ext4 mount ext2 and ext3 as well."""

# A journal is not replayed: nothing is ever written to an image, and one that was in use when it was copied will do.
_OPTIONS: Final = {"ext4": "noload"}

# Loop devices: a file as a block device. See loop(4) and linux/loop.h.
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4

_LOOP_CONFIG: Final = struct.Struct("=II 52xI 176x 64x")
"""struct loop_config: the file, the block size (0 for 512); of the struct loop_info64 in it only lo_flags."""

_ATTEMPTS: Final = 16
"""Devices that others may take between our asking for a free one and taking it."""


@define(eq=False)
class Image:
    """An image that is mounted, or about to be."""

    path: Path
    users: int = 0
    mounts: MountStack | None = None
    """What is mounted there, if anything."""

    lock: trio.Lock = field(init=False, factory=trio.Lock)


@define(eq=False)
class Images:
    """The images that are mounted now."""

    _directory: Path
    """Where their mount points are."""

    _namespace: MountNamespace
    _limiter: trio.CapacityLimiter
    """Of calls that may wait for the storage that images are on."""

    _numbers: Iterator[int] = field(init=False, factory=count)
    _images: dict[tuple[int, int], Image] = field(init=False, factory=dict)
    """By device and inode: a file that takes the place of another is another image."""

    def __attrs_post_init__(self) -> None:
        for path in self._directory.iterdir():  # from a former agent, in whose namespace something was mounted there
            with suppress(OSError):
                path.rmdir()

    async def acquire(self, file: int, status: os.stat_result, name: str) -> Image:
        """The mount of an image file. It stays until it was released as often as it was acquired.

        Args:
            file: the file, opened with O_PATH.
            status: its own.
            name: what people call it.

        Raises:
            InvalidArgumentError: there is no file system in the image.
            GuestError: it can't be mounted.
        """
        key = (status.st_dev, status.st_ino)
        # A path for each attempt: one that was abandoned may still be about to mount there.
        image = self._images.setdefault(key, Image(self._directory / str(next(self._numbers))))
        image.users += 1
        try:
            async with image.lock:
                if image.mounts is None:
                    await self._mount(image, file, name)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.release(image)
            raise
        return image

    async def release(self, image: Image) -> None:
        """Have one user less."""
        image.users -= 1
        async with image.lock:
            if image.users == 0:
                if image.mounts is not None:
                    await self._namespace.run(_unmount, image.path, image.mounts)
                    image.mounts = None
                if image.users == 0:
                    self._images = {key: other for key, other in self._images.items() if other is not image}

    async def _mount(self, image: Image, file: int, name: str) -> None:
        mounts = MountStack()
        try:
            await self._namespace.run_abandonable(_mount, os.dup(file), name, image.path, mounts, limiter=self._limiter)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._namespace.run(_give_up, image.path, mounts)
            raise
        image.mounts = mounts


def check(found: int, name: str) -> None:
    """Find out whether a file is an image. Blocks.

    Raises:
        InvalidArgumentError: it is not.
    """
    with _opened(found, name) as file:
        _kind(file, name)


def _mount(found: int, name: str, path: Path, mounts: MountStack) -> None:
    """Mount an image. Closes its file, which nobody else may: whoever asked may have gone."""
    try:
        with _opened(found, name) as file:
            _mount_file(file, name, path)
    finally:
        os.close(found)
    try:
        mounts.push(path)
    except GuestError:  # it is unmounted again
        with suppress(OSError):
            path.rmdir()
        raise


@contextmanager
def _opened(found: int, name: str) -> Iterator[int]:
    if not stat.S_ISREG(os.fstat(found).st_mode):
        raise InvalidArgumentError(f"the root file system, {name}, is neither a directory nor an image file")
    with open_path(f"/proc/self/fd/{found}", os.O_RDONLY) as file:
        yield file


def _mount_file(file: int, name: str, path: Path) -> None:
    kind = _kind(file, name)
    path.mkdir(parents=True, exist_ok=True)
    flags = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID
    try:
        with _loop_device(file) as device:
            linux.mount(device, str(path), kind, flags, _OPTIONS.get(kind, ""))
    except (OSError, GuestError) as error:
        with suppress(OSError):  # whoever asked may have given up, and have removed it
            path.rmdir()
        why = error.strerror if isinstance(error, OSError) else error
        raise GuestError(f"the {kind} image {name} can't be mounted: {why}") from error


def _give_up(path: Path, mounts: MountStack) -> None:
    """Leave nothing of a mount, which may still be under way: then its own thread does the same once it is there."""
    mounts.unmount()
    with suppress(OSError):
        path.rmdir()


def _unmount(path: Path, mounts: MountStack) -> None:
    mounts.unmount()
    path.rmdir()


def _kind(file: int, name: str) -> str:
    for kind, offset, magic in _MAGIC:
        if os.pread(file, len(magic), offset) == magic:
            return kind
    known = ", ".join(kind for kind, _offset, _magic in _MAGIC)
    raise InvalidArgumentError(
        f"the root file system, {name}, is a file, but no image of a kind that is known: {known}"
    )


@contextmanager
def _loop_device(file: int) -> Iterator[str]:
    """The path of a read-only loop device for an open file; once the context is left, it lives while it is mounted.

    Raises:
        GuestError: there is none to be had.
    """
    device, path = _attach_loop_device(file)
    try:
        yield path
    finally:
        os.close(device)


def _attach_loop_device(file: int) -> tuple[int, str]:
    config = _LOOP_CONFIG.pack(file, 0, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise GuestError("no loop device is free: others take them all")
