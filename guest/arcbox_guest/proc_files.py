"""The small text files of /proc, /sys and cgroups: proc(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def text(path: Path) -> str:
    """A file's content; empty for one that can't be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def number(path: Path) -> int:
    """The number in a file; 0 for "max", and for a file that can't be read."""
    content = text(path).strip()
    return int(content) if content.isdecimal() else 0


def memory_sizes(meminfo: str) -> dict[str, int]:
    """Bytes, by the names in /proc/meminfo."""
    found = {}
    for name, _, value in (line.partition(":") for line in meminfo.splitlines()):
        size = value.split()
        if size and size[0].isdecimal():
            found[name] = int(size[0]) * 1024
    return found


def _is_no_loopback(name: str) -> bool:
    return name != "lo"


def network_bytes(net_dev: str, counts: Callable[[str], bool] = _is_no_loopback) -> tuple[int, int]:
    """Bytes received and sent, from /proc/net/dev, by the interfaces whose names count."""
    received = sent = 0
    for name, _, numbers in (line.partition(":") for line in net_dev.splitlines()[2:]):
        fields = numbers.split()
        if len(fields) > 8 and counts(name.strip()):
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent
