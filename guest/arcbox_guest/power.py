"""The way down: services are stopped, file systems are synced, the machine is powered off."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field, frozen

from arcbox_guest.errors import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

_STOPPED_BY: Final = 0.8
"""The part of the grace period after which no service is waited for any more."""

_SYNCED_BY: Final = 0.9
"""The part of the grace period after which the disks are not waited for any more."""


class PowerSwitch(Protocol):
    """One way to power the machine off."""

    @property
    def name(self) -> str:
        """For the log."""

    async def off(self, deadline: float) -> None:
        """Power the machine off. Where that returns at all, it is about to happen.

        Args:
            deadline: until when whatever still runs may take to end, in Trio's time; it may have passed.

        Raises:
            Exception: any, when it can't be done.
        """


@frozen
class Stopper:
    """How to end one kind of service before the machine is powered off."""

    name: str
    """For the log."""

    stop: Callable[[], Awaitable[None]]


async def sync_until(deadline: float, sync: Callable[[], None]) -> None:
    """Call a blocking `sync`, but wait no longer: a disk that hangs must not keep the machine on.

    Args:
        deadline: in Trio's time.
        sync: what to call, in a thread.
    """
    with trio.move_on_at(deadline) as patience:
        await trio.to_thread.run_sync(sync, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    if patience.cancelled_caught:
        log.warning("file systems could not be synced in time")


@define(eq=False)
class Power:
    """Powers the machine off when it is asked to, in `run`."""

    _switch: PowerSwitch | None
    """None where this agent must not power anything off."""

    _stoppers: Sequence[Stopper] = ()
    """In the order in which they are called."""

    _sync: Callable[[], None] = field(default=os.sync, kw_only=True)
    _begun: trio.Event = field(init=False, factory=trio.Event)
    _grace: float = field(init=False, default=0.0)

    def check(self) -> None:
        """Find out whether `begin` would be refused.

        Raises:
            NotSupportedError: it would.
        """
        self._usable_switch()

    def begin(self, grace: float) -> None:
        """Begin to power the machine off; nothing new when that is under way.

        Args:
            grace: seconds until it shall be off.

        Raises:
            NotSupportedError: this agent must not.
        """
        self.check()
        if not self._begun.is_set():
            self._grace = grace
            self._begun.set()

    async def run(self) -> None:
        """Wait for `begin` and carry it out. When that fails, wait for the next one."""
        while True:
            await self._begun.wait()
            try:
                await self._power_off(self._grace)
            except Exception:
                log.exception("the machine could not be powered off")
                self._begun = trio.Event()
            else:
                await trio.sleep_forever()

    def _usable_switch(self) -> PowerSwitch:
        if self._switch is None:
            raise NotSupportedError(
                "this agent can't power its machine off: it is neither PID 1 nor a systemd service,"
                " or its setting power.off is disabled"
            )
        return self._switch

    async def _power_off(self, grace: float) -> None:
        switch = self._usable_switch()
        log.info("powering off", extra={"grace_seconds": grace, "switch": switch.name})
        begun = trio.current_time()
        await self._stop_services(begun + grace * _STOPPED_BY)
        await sync_until(begun + grace * _SYNCED_BY, self._sync)
        await switch.off(begun + grace)

    async def _stop_services(self, deadline: float) -> None:
        """Each gets its share of the time that is left: one that hangs leaves some for those after it."""
        for waiting, stopper in zip(range(len(self._stoppers), 0, -1), self._stoppers, strict=True):
            share = max(0.0, deadline - trio.current_time()) / waiting
            try:
                with trio.move_on_after(share) as patience:
                    await stopper.stop()
            except Exception:
                log.exception("%s could not be stopped", stopper.name)
            else:
                if patience.cancelled_caught:
                    log.warning("%s did not stop in time", stopper.name, extra={"seconds": share})
