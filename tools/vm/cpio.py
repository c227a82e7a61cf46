"""Archives that the kernel unpacks as its first root file system: cpio in the format "newc".

The kernel's Documentation/driver-api/early-userspace/buffer-format.rst describes it; archives may be joined.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_TRAILER: Final = "TRAILER!!!"


def archive(files: Mapping[str, bytes | str]) -> bytes:
    """An archive of files, with the directories above them.

    Args:
        files: content by path. Bytes that begin as an ELF program or a script are executable; a text is the target of
            a symbolic link.
    """
    entries = list[bytes]()
    directories = sorted(
        {"/".join(parts[:n]) for path in files for parts in [path.split("/")] for n in range(1, len(parts))}
    )
    for directory in directories:
        entries.append(_entry(len(entries) + 1, directory, stat.S_IFDIR | 0o755, b""))
    for path, content in files.items():
        if isinstance(content, str):
            mode, data = stat.S_IFLNK | 0o777, content.encode()
        else:
            mode, data = stat.S_IFREG | (0o755 if content.startswith((b"\x7fELF", b"#!")) else 0o644), content
        entries.append(_entry(len(entries) + 1, path, mode, data))
    entries.append(_entry(0, _TRAILER, 0, b""))
    return _padded(b"".join(entries), 512)


def tree(directory: Path, prefix: str = "") -> dict[str, bytes | str]:
    """The files below a directory, as `archive` takes them."""
    return {
        f"{prefix}{path.relative_to(directory)}": path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def _entry(inode: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), device number (2), length of the name, checksum
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + name, 4) + _padded(data, 4)


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)
