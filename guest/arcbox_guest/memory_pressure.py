"""Whether the machine is short of memory: MemAvailable, refaults, and the kernel's own PSI triggers.

A refault is a page that was evicted and is needed again: many of them are thrashing, however much memory is available.
See proc(5), and Documentation/accounting/psi.rst of the kernel for triggers.
"""

from __future__ import annotations

import os
import select
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, evolve, field, frozen

from arcbox_guest.proc_files import memory_sizes, text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_INTERVAL: Final = 1.0
"""Seconds between two looks."""

_SECOND: Final = 1_000_000
_PSI_WINDOWS: Final = (_SECOND, 2 * _SECOND)
"""Microseconds in which the stalls of a trigger are added up: without CAP_SYS_RESOURCE only multiples of 2 s."""


class Reason(Enum):
    """Why an event is told."""

    KEEPALIVE = "keepalive"
    LOW_AVAILABLE = "low available"
    """Less memory is available than was asked for; or tasks were stalled for want of it."""

    REFAULT_SPIKE = "refault spike"
    WINDOW_ELAPSED = "window elapsed"
    """The last event: the time is up."""

    SETTLED = "settled"
    """There was pressure, and is none any more."""


@frozen
class PressureEvent:
    """The machine's memory at one moment."""

    reason: Reason
    available_bytes: int
    refault_rate: int
    """Pages per second, since the look before."""


@frozen(kw_only=True)
class Thresholds:
    """What counts as pressure. 0 is no threshold of that kind."""

    min_available_bytes: int = 0
    max_refault_rate: int = 0
    """Pages per second."""

    psi_full_stall_us: int = 0
    """Microseconds within a second, in which no task could go on for want of memory."""


@frozen
class MemoryPressure:
    """Watches the memory of the machine."""

    _proc: Path = Path("/proc")

    async def watch(
        self, thresholds: Thresholds, seconds: float, keepalive: float, tell: Callable[[PressureEvent], Awaitable[None]]
    ) -> None:
        """Look once a second, and tell when pressure begins, changes its kind, and ends.

        Args:
            thresholds: what counts as pressure.
            seconds: how long; then `WINDOW_ELAPSED` is the last event.
            keepalive: seconds without an event, after which `KEEPALIVE` is one. It is the first, too.
            tell: is given each event.
        """
        now = trio.current_time()
        end, next_keepalive, told = now + seconds, now, Reason.SETTLED
        with _stall_trigger(self._proc / "pressure/memory", thresholds.psi_full_stall_us) as stalls:
            meter = _Meter(self._proc)
            first = True
            while (now := trio.current_time()) < end:
                event = meter.look(thresholds, stalled=stalls.happened())
                if event.reason is told or first:
                    event, first = evolve(event, reason=Reason.KEEPALIVE), False
                else:
                    told = event.reason
                if event.reason is not Reason.KEEPALIVE or now >= next_keepalive:
                    await tell(event)
                    next_keepalive = now + keepalive
                await stalls.wait(min(end, now + _INTERVAL))
            last = meter.look(thresholds)
        await tell(evolve(last, reason=Reason.WINDOW_ELAPSED))


@define(eq=False)
class _Meter:
    """Looks at the memory, and remembers the refaults of the look before."""

    _proc: Path
    _refaults: int = field(init=False)
    _looked_at: float = field(init=False, factory=trio.current_time)

    @_refaults.default
    def _first(self) -> int:
        return self._count_refaults()

    def look(self, thresholds: Thresholds, *, stalled: bool = False) -> PressureEvent:
        """What there is now; the reason is `SETTLED` where there is no pressure."""
        available = memory_sizes(text(self._proc / "meminfo")).get("MemAvailable", 0)
        rate = self._refault_rate()
        if stalled or available < thresholds.min_available_bytes:
            reason = Reason.LOW_AVAILABLE
        elif 0 < thresholds.max_refault_rate < rate:
            reason = Reason.REFAULT_SPIKE
        else:
            reason = Reason.SETTLED
        return PressureEvent(reason, available, rate)

    def _refault_rate(self) -> int:
        now, count = trio.current_time(), self._count_refaults()
        seconds, pages = now - self._looked_at, count - self._refaults
        self._looked_at, self._refaults = now, count
        return max(0, round(pages / seconds)) if seconds > 0 else 0

    def _count_refaults(self) -> int:
        """Of file pages and anonymous ones, which kernels before 5.9 count together."""
        lines = (line.split() for line in text(self._proc / "vmstat").splitlines())
        return sum(int(value) for name, value in lines if name.startswith("workingset_refault"))


@define(eq=False)
class _Stalls:
    """The events of a PSI trigger; without one, there never are any."""

    _events: select.epoll | None
    _seen: bool = field(init=False, default=False)
    """Whoever polls for an event has taken it, epoll of an epoll too."""

    def happened(self) -> bool:
        """Whether tasks were stalled for as long as the trigger says, since this was asked before."""
        seen, self._seen = self._seen, False
        return seen or (self._events is not None and bool(self._events.poll(0)))

    async def wait(self, deadline: float) -> None:
        """Wait until they are, or until the deadline in Trio's time."""
        with trio.move_on_at(deadline):
            if self._events is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(self._events.fileno())
                self._seen = True


@contextmanager
def _stall_trigger(pressure: Path, stall_us: int) -> Iterator[_Stalls]:
    """Have the kernel tell of stalls, where it has PSI and takes such a trigger."""
    trigger = _open_trigger(pressure, stall_us) if stall_us else None
    if trigger is None:
        yield _Stalls(None)
        return
    try:
        with select.epoll() as events:
            events.register(trigger, select.EPOLLPRI)
            yield _Stalls(events)
    finally:
        os.close(trigger)


def _open_trigger(pressure: Path, stall_us: int) -> int | None:
    """A descriptor that tells of stalls of this length within a second; None where the kernel has no such thing."""
    for window in _PSI_WINDOWS:
        try:
            trigger = os.open(pressure, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            os.write(trigger, b"full %d %d\0" % (min(stall_us * window // _SECOND, window), window))
        except OSError:
            os.close(trigger)
        else:
            return trigger
    return None
