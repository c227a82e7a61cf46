"""Times of day that survive a step of the clock.

A guest's CLOCK_REALTIME is stepped to its host's by a ping, often long after the first sandbox was created. So a record
says how far CLOCK_REALTIME was ahead of CLOCK_BOOTTIME, which nobody steps, when its times were read; from that and
from how far it is now follows what a clock that was always right would have shown. See clock_gettime(2).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define, evolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_guest.sandboxes.model import Sandbox

_STEP: Final = 0.5
"""Seconds: what is less is how the clock is kept right, and the time between two readings."""

_FIELDS: Final = ("created_at", "ready_at", "last_exited_at", "expires_at")
"""The times in a record, in Unix seconds; 0 stands for none."""


def read_boot_id() -> str:
    """What tells one run of the kernel from another: random(4). Empty where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def read_time_since_boot() -> float:
    """CLOCK_BOOTTIME, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@define(eq=False)
class Times:
    """CLOCK_REALTIME, beside a clock that is never stepped."""

    _now_ns: Callable[[], int] = time.time_ns
    _since_boot: Callable[[], float] = read_time_since_boot
    _read_boot_id: Callable[[], str] = read_boot_id
    _boot_id: str | None = None

    def now(self) -> float:
        """Unix seconds."""
        return self._now_ns() / 1e9

    def restated(self, sandbox: Sandbox) -> Sandbox:
        """A record with its times as today's clock would have shown them. Those of another boot stay as they are."""
        if self._boot_id is None:
            self._boot_id = self._read_boot_id()
        ahead = self.now() - self._since_boot()
        step = ahead - sandbox.clock_ahead if sandbox.boot_id == self._boot_id else 0.0
        if sandbox.boot_id == self._boot_id and abs(step) < _STEP:
            return sandbox
        times = {name: at + step for name in _FIELDS if (at := getattr(sandbox, name))}
        return evolve(sandbox, boot_id=self._boot_id, clock_ahead=ahead, **times)
