"""The guest's clock, and the host's that it follows."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from typing import Final

log = logging.getLogger(__name__)

_RESOLUTION: Final = 1
"""Seconds: the host tells whole ones."""

_TOLERANCE: Final = 1.0
"""Seconds that the guest's clock may be off before it is stepped."""


class Clock(Protocol):
    """A clock that can be read and set, in Unix seconds."""

    def now(self) -> float:
        """The time that it shows."""

    def step(self, to: float) -> None:
        """Set it.

        Raises:
            OSError: not allowed, or not a time that the machine takes.
            OverflowError, ValueError: not a time that fits the machine's type for it.
        """


class SystemClock:
    """CLOCK_REALTIME."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_REALTIME)

    def step(self, to: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, to)


@frozen
class ClockFollower:
    """Keeps a clock at the host's time, as far as whole seconds can say."""

    _clock: Clock
    _enabled: bool

    def follow(self, host_seconds: int) -> None:
        """Step the clock when the host's says that it is off by a second or more.

        The host cuts its clock down to whole seconds: it shows something in [host_seconds, host_seconds + 1),
        and the guest's clock is off by at least its distance to that interval. Only that distance counts:
        measured to host_seconds itself, an accurate clock would be stepped back whenever a second ends while a
        ping is under way. A clock that can't be set is logged, and left as it is.

        Args:
            host_seconds: the host's clock, Unix seconds; 0 or less says nothing.
        """
        if host_seconds <= 0 or not self._enabled:
            return
        now = self._clock.now()
        if host_seconds - _TOLERANCE < now < host_seconds + _RESOLUTION + _TOLERANCE:
            return
        offset = host_seconds - now
        try:
            self._clock.step(float(host_seconds))
        except (OSError, OverflowError, ValueError) as error:
            log.warning("the clock can't be set", extra={"offset_seconds": offset, "error": str(error)})
        else:
            log.info("the clock was stepped to the host's", extra={"offset_seconds": offset})
