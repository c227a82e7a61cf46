"""Files of a sandbox, looked at from outside. What is in there may be hostile: no path leads out of its root."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from arcbox_guest.linux import open_in_root

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST: Final = 4 * 1024 * 1024
"""Bytes that are read of a file, which may be endless."""


@contextmanager
def opened(root: int, path: str, flags: int = os.O_PATH) -> Iterator[int]:
    """Open a file of a sandbox, for as long as the context lasts."""
    fd = open_in_root(root, path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_path(path: str, flags: int = os.O_PATH) -> Iterator[int]:
    """Open a path of the guest itself, for as long as the context lasts."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read(root: int, path: str) -> str:
    """The text of a file; nothing if it can't be read, or is no regular file."""
    try:
        return read_start(root, path, _LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def read_start(root: int, path: str, size: int) -> bytes:
    """At most so many bytes from the beginning of a regular file; nothing of any other.

    Raises:
        OSError: there is no such file.
    """
    # A FIFO would have us wait, and opening a device may do anything: O_PATH opens nothing.
    with opened(root, path) as found:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return b""
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        pieces = []
        while size > 0 and (piece := file.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
