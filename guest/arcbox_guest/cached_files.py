"""Opening files without waiting for storage, where all that it takes is in memory.

To open a file in a thread takes longer than to send a megabyte of it. Where the kernel has path, inode and pages at
hand, no thread is needed; whether it has, it can be asked without waiting, but not of every file system: one that is
served by somebody else (virtiofs, NFS, FUSE) may wait for that somebody whatever is asked of it.
"""

from __future__ import annotations

import ctypes
import os
import stat
from struct import Struct
from typing import Final, NamedTuple

from attrs import define, field

from arcbox_guest import linux, mountinfo

_LOCAL: Final = frozenset({"btrfs", "ext2", "ext3", "ext4", "erofs", "f2fs", "ramfs", "squashfs", "tmpfs", "xfs"})
"""File systems whose inodes, once in memory, need nobody else."""

_MOST_MOUNTS: Final = 1024
"""Remembered; mounts come and go, and their ids are never used again."""

_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_WANTED: Final = 0x203
"""Type, mode and size."""

_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
"""Since Linux 6.8. The ids of before were used again, for mounts of any other kind."""

_STATX: Final = Struct("=I 24x H 10x Q 96x Q")
"""struct statx(2), as far as it is needed: mask, mode, size, mount id."""

_StatxBuffer = ctypes.c_char * 256


class _Status(NamedTuple):
    mode: int
    size: int
    mount: int


class CachedFile(NamedTuple):
    """A file that was opened, for whoever asked for it to close."""

    descriptor: int
    size: int
    """In bytes."""


@define(eq=False)
class CachedFiles:
    """Opens files of local file systems; it knows those that files were opened on before."""

    _is_local: dict[int, bool] = field(init=False, factory=dict)
    """By mount id."""

    def open(self, path: bytes) -> CachedFile | None:
        """Open a regular file for reading; None when that would be an error, or may take waiting.

        Args:
            path: the file, without a zero byte; symbolic links are followed.
        """
        handle = _open_cached(path)
        if handle is None:
            return None
        try:
            status = _status(handle, _STATX_MNT_ID_UNIQUE)
            if status is None or not self._is_local.get(status.mount) or not stat.S_ISREG(status.mode):
                return None
            return CachedFile(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY), status.size)
        except OSError:
            return None
        finally:
            os.close(handle)

    def learn(self, descriptor: int) -> bool:
        """Whether an open file is of a local file system, which is remembered. May wait for storage."""
        status = _status(descriptor, _STATX_MNT_ID_UNIQUE)
        if status is None:
            return False
        if status.mount not in self._is_local:
            now = _status(descriptor, _STATX_MNT_ID)  # what mountinfo calls it, for as long as the file is open
            if len(self._is_local) >= _MOST_MOUNTS:
                self._is_local.clear()
            self._is_local[status.mount] = now is not None and _kind_of_mount(now.mount) in _LOCAL
        return self._is_local[status.mount]


def is_local_and_cached(path: bytes) -> bool:
    """Whether what a path leads to is known to the kernel, and of a local file system. Never waits for storage."""
    handle = _open_cached(path)
    if handle is None:
        return False
    try:
        status = _status(handle, _STATX_MNT_ID)
        return status is not None and _kind_of_mount(status.mount) in _LOCAL
    finally:
        os.close(handle)


def _kind_of_mount(number: int) -> str:
    """The type of the file system of a mount; empty for one that is not seen from here."""
    found = (mount.kind for mount in mountinfo.mounts(mountinfo.OWN.read_bytes()) if mount.id == number)
    return next(found, "")


def _open_cached(path: bytes) -> int | None:
    try:
        return linux.open_cached(path)
    except OSError:
        return None


def _status(descriptor: int, kind_of_id: int) -> _Status | None:
    """What the kernel has at hand on an open file; None where it does not know that kind of mount id."""
    buffer = _StatxBuffer()
    flags, mask = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_WANTED | kind_of_id
    if linux.libc.statx(descriptor, b"", flags, mask, buffer) != 0:
        return None
    known, *status = _STATX.unpack_from(buffer)
    return _Status(*status) if known & mask == mask else None
