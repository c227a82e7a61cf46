"""Files of a sandbox, looked at and removed from outside. They may be hostile: no path leads out of the root."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Final

from arcbox_guest.linux import open_in_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
def open_path(path: str | Path, flags: int = os.O_PATH) -> Iterator[int]:
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


def remove_tree(path: Path) -> None:
    """Remove a directory and all below, if it is there. Blocks.

    However deep it is: directories are moved up before they are emptied, so that no path gets too long for the kernel
    and nothing recurses. To be called where nothing is mounted below; what is, in other mount namespaces, is
    unmounted there.

    Raises:
        OSError: it can't be removed.
    """
    with suppress(FileNotFoundError):
        _empty(path)
        path.rmdir()


def _empty(top: Path) -> None:
    numbers = count()
    while directories := _unlink_files(top):
        for directory in directories:
            for child in _unlink_files(directory):
                _move_up(child, top, numbers)
            os.rmdir(directory)


def _move_up(directory: str, top: Path, numbers: count[int]) -> None:
    with suppress(OSError):
        os.rmdir(directory)
        return
    while True:
        moved = f"{top}/.removed-{next(numbers)}"
        if not os.path.lexists(moved):
            os.rename(directory, moved)
            return


def _unlink_files(directory: str | Path) -> list[str]:
    """Unlink all in a directory but the directories, whose paths are returned."""
    with os.scandir(directory) as entries:
        found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_directory in found:
        if not is_directory:
            os.unlink(path)
    return [path for path, is_directory in found if is_directory]
