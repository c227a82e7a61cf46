"""What containers need of a guest's kernel and mounts. Most is there in a guest that systemd has booted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import trio

from arcbox_guest import linux
from arcbox_guest.errors import GuestError
from arcbox_guest.tools import run_tool

log = logging.getLogger(__name__)

_MODULES: Final = {"overlay": "overlay", "btrfs": "btrfs"}
"""The module of each file system."""

_TIMEOUT: Final = 10.0
"""Seconds for modprobe."""

_NOTHING_MOUNTED: Final = (
    ("/dev/pts", "devpts", linux.MS_NOSUID, "ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777"),  # noqa: S108  shm_overview(7)
    ("/sys/fs/cgroup", "cgroup2", linux.MS_NOSUID | linux.MS_NODEV, "nsdelegate"),
)
"""Mount point, type, flags and options of what is mounted unless something is mounted there."""


async def prepare(limiter: trio.CapacityLimiter) -> None:
    """Mount what is missing, and load the modules of missing file systems.

    Raises:
        GuestError: something can't be mounted.
    """
    for module in await trio.to_thread.run_sync(_mount_missing, limiter=limiter, abandon_on_cancel=True):
        await _load(module, limiter)


async def _load(module: str, limiter: trio.CapacityLimiter) -> None:
    """A kernel without it may still do: dockerd has other ways to store images."""
    try:
        result = await run_tool("modprobe", module, timeout=_TIMEOUT, limiter=limiter)
    except GuestError as error:
        log.warning("kernel module not loaded", extra={"kernel_module": module, "reason": str(error)})
        return
    if result.status != 0:
        log.warning("kernel module not loaded", extra={"kernel_module": module, "reason": result.last_line})


def _mount_missing() -> list[str]:
    """Mount what is missing, and return which modules are."""
    for point, kind, flags, options in _NOTHING_MOUNTED:
        try:
            if not Path(point).is_mount():
                Path(point).mkdir(parents=True, exist_ok=True)
                linux.mount(kind, point, kind, flags, options)
        except OSError as error:
            raise GuestError(f"{kind} can't be mounted on {point}: {error.strerror}") from error
    known = Path("/proc/filesystems").read_text("utf-8").split()
    return [module for kind, module in _MODULES.items() if kind not in known]
