"""The kernel's news of directories: inotify(7)."""

from __future__ import annotations

import ctypes
import os
from struct import Struct
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from arcbox_guest.linux import check_result, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ONLYDIR: Final = 0x0100_0000
EXCL_UNLINK: Final = 0x0400_0000
ISDIR: Final = 0x4000_0000

_HEADER: Final = Struct("iIII")  # watch descriptor, mask, cookie, length of the name with its NULs
_ROOM: Final = 64 * 1024


@frozen
class RawEvent:
    """What inotify reports."""

    watch: int
    """-1 for an overflow of the queue."""

    mask: int
    cookie: int
    """The same for both halves of a rename."""

    name: str
    """In the directory that is watched; empty for the directory itself."""


@define(eq=False)
class Inotify:
    """An inotify instance, until nobody has it any more: a thread may have been left with it."""

    descriptor: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.descriptor = check_result(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory: int, mask: int) -> int:
        """Watch an open directory; its watch descriptor, the same one if it is watched already.

        Raises:
            OSError: ENOSPC, the user has as many watches as the kernel gives him.
        """
        path = f"/proc/self/fd/{directory}".encode()
        return check_result(libc.inotify_add_watch(self.descriptor, path, ctypes.c_uint32(mask)))

    def remove(self, watch: int) -> None:
        """Watch a directory no longer, if it is watched."""
        libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[RawEvent]:
        """What has happened since the last call; empty if nothing has."""
        try:
            return list(_decoded(os.read(self.descriptor, _ROOM)))
        except BlockingIOError:
            return []

    def __del__(self) -> None:
        os.close(self.descriptor)


def _decoded(data: bytes) -> Iterator[RawEvent]:
    position = 0
    while position < len(data):
        watch, mask, cookie, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size + length
        name = os.fsdecode(data[position - length : position].rstrip(b"\0"))
        yield RawEvent(watch, mask, cookie, name)
