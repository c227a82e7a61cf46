"""What is mounted, as in proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN: Final = Path("/proc/self/mountinfo")


@frozen
class Mount:
    """A line of it."""

    id: int
    device: str
    """Major and minor number of the file system: all subvolumes of a btrfs share it, whatever stat(2) says of them."""

    target: str
    kind: str
    """Of file system."""

    options: str
    """Of the file system; those of the mount itself are others."""


def mounts(content: bytes) -> Iterator[Mount]:
    """All mounts, in the order in which they were made: what is mounted later on the same target hides the former.

    Args:
        content: of a file as `OWN`.
    """
    for line in filter(None, content.split(b"\n")):  # a path may hold what else ends a line elsewhere
        mount, _, file_system = line.partition(b" - ")
        number, _parent, device, _root, target = mount.split(b" ")[:5]
        kind, _source, options = [*file_system.split(b" ", 2), b"", b"", b""][:3]
        yield Mount(
            int(number), device.decode(), os.fsdecode(_unescape(target)), os.fsdecode(kind), os.fsdecode(options)
        )


def _unescape(field: bytes) -> bytes:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
