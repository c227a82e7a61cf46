"""A program: looks at paths, and reads a little of each, as whoever uses them will. Run by `storage_probe`.

python storage_child.py PATH...
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_START: Final = 64 * 1024
"""Bytes that are read of a file."""


def look_at(path: Path) -> None:
    """Ask the file system of a path what whoever uses the path will ask."""
    mode = path.stat().st_mode
    os.statvfs(path)
    if stat.S_ISDIR(mode):
        with os.scandir(path) as entries:
            next(entries, None)
    elif stat.S_ISREG(mode):
        with path.open("rb", buffering=0) as file:
            file.read(_START)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        with suppress(OSError):  # an answer as well
            look_at(Path(each))
    os._exit(0)
