"""What ends a sandbox by itself: its time to live, and idleness."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes.model import IdleAction, Reason, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_guest.sandboxes.model import Sandbox

log = logging.getLogger(__name__)

_AGAIN: Final = 60.0
"""Seconds after which it is tried again to remove or pause a sandbox, where that has failed."""


@define(eq=False, kw_only=True)
class Lifetime:
    """Removes a sandbox when its time to live is up, and removes or pauses it when it was idle for long enough.

    Idle is a sandbox that is ready, in which nothing but the init runs, and for which `touch` is not called.
    """

    _sandbox: Callable[[], Sandbox]
    """As it is now, with its times as the clock now shows them."""

    _now: Callable[[], float]
    """Unix seconds."""

    _check_idle: Callable[[], Awaitable[None]]
    """Raises ConflictError: processes that were left behind run in it."""

    _remove: Callable[[Reason], Awaitable[None]]
    _pause: Callable[[], Awaitable[None]]
    _touched_at: float = field(init=False, default=math.inf)
    """Infinite until it can be used, by this agent."""

    _changed: trio.Event = field(init=False, factory=trio.Event)
    """Set when a deadline is another one than before."""

    def touch(self) -> None:
        """Count as used now."""
        self._touched_at = trio.current_time()

    def reconsider(self) -> None:
        """The sandbox has other limits, is in another state, or can be used from now on."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Wait for either, until cancelled: that the sandbox is gone ends it from outside."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, self._time_to_live, self._expire, "expired sandbox not removed")
            nursery.start_soon(
                self._watch, self._time_to_idle, self._be_idle, "idle sandbox neither removed nor paused"
            )

    async def _watch(self, time_left: Callable[[], float], act: Callable[[], Awaitable[None]], failure: str) -> None:
        while True:
            changed, left = self._changed, time_left()
            if left > 0:
                with trio.move_on_after(left):
                    await changed.wait()
                continue
            try:
                await act()
            except GuestError as error:
                log.warning(failure, extra={"sandbox": self._sandbox().id, "reason": str(error)})
                await trio.sleep(_AGAIN)

    def _time_to_live(self) -> float:
        expires_at = self._sandbox().expires_at
        return expires_at - self._now() if expires_at else math.inf

    def _time_to_idle(self) -> float:
        sandbox = self._sandbox()
        if sandbox.state is not State.READY or not sandbox.idle_timeout:
            return math.inf
        return self._touched_at + sandbox.idle_timeout - trio.current_time()

    async def _expire(self) -> None:
        await self._remove(Reason.EXPIRED)

    async def _be_idle(self) -> None:
        try:
            await self._check_idle()
        except GuestError:
            self.touch()  # something runs: it is looked at again when as much time has gone by
        if self._time_to_idle() > 0:
            return
        if self._sandbox().on_idle is IdleAction.PAUSE:
            await self._pause()
        else:
            await self._remove(Reason.IDLE)
