"""Removing directories with whatever a sandbox has put into them."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


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
