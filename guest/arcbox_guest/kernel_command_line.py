"""What the host says to the guest on the kernel command line."""

from __future__ import annotations

from pathlib import Path


def parameter(name: str, command_line: Path = Path("/proc/cmdline")) -> str | None:
    """The value of `name=value`, the last one if there are several; None when there is none, or it is empty."""
    try:
        words = command_line.read_text("utf-8", "replace").split()
    except OSError:
        return None
    values = [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
    return (values[-1] or None) if values else None
