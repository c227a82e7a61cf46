"""The data disks: telling them which blocks are free, so that the host gets the space back."""

from __future__ import annotations

import errno
import logging
import os
from fcntl import ioctl
from struct import Struct
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest import mountinfo
from arcbox_guest.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_FITRIM: Final = 0xC018_5879
"""ioctl_fitrim(2)."""

_FSTRIM_RANGE: Final = Struct("=QQQ")
"""struct fstrim_range: start, length, least extent; in bytes. Length is what was trimmed, afterwards."""

_WHOLE_FILE_SYSTEM: Final = _FSTRIM_RANGE.pack(0, 2**64 - 1, 0)

_NO_DISCARD: Final = (errno.EOPNOTSUPP, errno.ENOTTY)
"""The device can't, or the file system doesn't know how."""


@frozen
class TrimResult:
    """What came of trimming one mount."""

    mount: str
    trimmed: int = 0
    """Bytes."""

    error: str | None = None
    """Why it failed, for people; None when it did not."""


def fitrim(directory: int) -> int:
    """Trim the file system that an open directory is on.

    Returns:
        How many bytes were trimmed.

    Raises:
        OSError: EOPNOTSUPP or ENOTTY when it can't be trimmed, among others.
    """
    trim_range = bytearray(_WHOLE_FILE_SYSTEM)
    ioctl(directory, _FITRIM, trim_range)
    return int(_FSTRIM_RANGE.unpack(trim_range)[1])


@define(eq=False)
class Disks:
    """The mounts of the data disks, mounted or not."""

    _mounts: Sequence[str]
    _fitrim: Callable[[int], int] = field(default=fitrim, kw_only=True)
    _one_at_a_time: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(1))

    async def trim(self) -> tuple[TrimResult, ...]:
        """Trim each file system that is mounted on one of the mounts, once; one call after the other.

        A caller that is cancelled does not wait for the disk, the next call does.

        Raises:
            GuestError: what is mounted can't be found out.
        """
        return await trio.to_thread.run_sync(self._trim, limiter=self._one_at_a_time, abandon_on_cancel=True)

    async def trim_periodically(self, interval: float) -> None:
        """Trim every so many seconds, for ever, and log what comes of it.

        Args:
            interval: seconds; 0 is never, and returns at once.
        """
        if interval <= 0:
            return
        while True:
            await trio.sleep(interval)
            try:
                results = await self.trim()
            except Exception:
                log.exception("trim failed")
                continue
            for result in results:
                if result.error is None:
                    log.info("trimmed", extra={"mount": result.mount, "bytes": result.trimmed})
                else:
                    log.warning("trim failed", extra={"mount": result.mount, "error": result.error})

    def _trim(self) -> tuple[TrimResult, ...]:
        try:
            devices = mounted_devices(mountinfo.OWN.read_bytes())
        except OSError as error:
            raise GuestError(f"what is mounted can't be read: {error}") from error
        by_device: dict[str, str] = {}
        for mount in self._mounts:
            device = devices.get(os.path.realpath(mount))
            if device is not None:
                by_device.setdefault(device, mount)
        return tuple(map(self._trim_mount, by_device.values()))

    def _trim_mount(self, mount: str) -> TrimResult:
        try:
            directory = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return TrimResult(mount, trimmed=self._fitrim(directory))
            finally:
                os.close(directory)
        except OSError as error:
            if error.errno in _NO_DISCARD:
                return TrimResult(mount, error="discard not supported")
            return TrimResult(mount, error=error.strerror)


def mounted_devices(content: bytes) -> dict[str, str]:
    """The device number, as text, of what is mounted on top of each mount point.

    Args:
        content: that of /proc/PID/mountinfo.
    """
    return {mount.target: mount.device for mount in mountinfo.mounts(content)}
