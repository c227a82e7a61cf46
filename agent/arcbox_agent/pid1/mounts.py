"""File systems that programs count on, mounted where nobody has mounted them yet."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from arcbox_agent.pid1.console import say
from arcbox_guest.linux import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

_SAFE: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC

_KERNEL: Final = (
    ("proc", "/proc", _SAFE, ""),
    ("sysfs", "/sys", _SAFE, ""),
    ("devtmpfs", "/dev", MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"),  # noqa: S108  where shm_open(3) looks
    ("cgroup2", "/sys/fs/cgroup", _SAFE, "nsdelegate"),
)
"""Type, target, flags and options; a target comes after those above it."""

_TEMPORARY: Final = (("/run", "mode=0755"), ("/tmp", "mode=1777"))  # noqa: S108  the system's own
"""Mounted where nobody has prepared the machine before: the runtime of a container has."""

_SHARES: Final = (("arcbox", "/arcbox"), ("users", "/Users"))
"""Tags of virtiofs that an ArcBox host has, and where they belong."""

_VIRTIOFS: Final = Path("/sys/bus/virtio/drivers/virtiofs")
"""Has a link for each share."""

_LINKS: Final = (("/proc/self/fd", "/dev/fd"), ("fd/0", "/dev/stdin"), ("fd/1", "/dev/stdout"), ("fd/2", "/dev/stderr"))
"""What udev would make, and shells take for granted."""


def mount_all() -> None:
    """Mount what is missing; what can't be is said on the console."""
    prepared = os.path.ismount("/proc")
    for kind, target, flags, options in _KERNEL:
        _mount(kind, target, flags, options)
    for source, link in _LINKS:
        with suppress(OSError):
            Path(link).symlink_to(source)
    for target, options in () if prepared else _TEMPORARY:
        _mount("tmpfs", target, MS_NOSUID | MS_NODEV, options)


def mount_shares() -> None:
    """Mount the shares of the host that are there."""
    if not any(_VIRTIOFS.glob("virtio*")):
        return
    for tag, target in _SHARES:
        if os.path.ismount(target):
            continue
        try:
            Path(target).mkdir(parents=True, exist_ok=True)
            mount(tag, target, "virtiofs", MS_NOSUID | MS_NODEV)
        except OSError as error:
            if error.errno != errno.EINVAL:  # no such share
                say(f"{target} can't be mounted: {error.strerror}")


def _mount(kind: str, target: str, flags: int, options: str) -> None:
    try:
        if os.path.ismount(target):
            return
        Path(target).mkdir(parents=True, exist_ok=True)
        mount(kind, target, kind, flags, options)
    except OSError as error:
        say(f"{target} can't be mounted: {error.strerror}")
