"""What happens to sandboxes, told to whoever wants to know."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, field, frozen

from arcbox_guest.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from arcbox_guest.sandboxes.model import Action

BACKLOG: Final = 1024
"""Events that are kept for a subscriber who does not take them."""


@frozen
class Event:
    """Something that happened to a sandbox."""

    sandbox_id: str
    action: Action
    timestamp_ns: int
    """Unix time, in nanoseconds."""

    attributes: Mapping[str, str] = Factory(dict)
    """`exit_code` with IDLE, `error` with FAILED. `reason` (a `Reason`) with IDLE, STOPPING and REMOVED, where
    something was killed; `error` with IDLE where the process could not be started."""


@define(eq=False)
class Subscription:
    """The events that one subscriber wants, from when it was made. Iterate over it; leave its context to end it."""

    _sandbox_id: str
    _action: Action | None
    _end: Callable[[Subscription], None]
    _inbox: trio.MemorySendChannel[Event] = field(init=False)
    _events: trio.MemoryReceiveChannel[Event] = field(init=False)

    def __attrs_post_init__(self) -> None:
        # Without a bound of its own: the channel would tell of a full buffer only after the event that did not fit.
        self._inbox, self._events = trio.open_memory_channel[Event](math.inf)

    def offer(self, event: Event) -> bool:
        """Keep an event for the subscriber if it is wanted; False for a subscriber that has fallen behind too far."""
        if self._sandbox_id not in ("", event.sandbox_id) or self._action not in (None, event.action):
            return True
        if self._events.statistics().current_buffer_used == BACKLOG:
            self._inbox.close()
            return False
        self._inbox.send_nowait(event)
        return True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; waits until there is one.

        Raises:
            UnavailableError: the subscriber fell behind. It has had all events up to then.
        """
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            raise UnavailableError(
                f"events were lost: more than {BACKLOG} happened before they were read; subscribe again, and list the"
                " sandboxes to see how they are now"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(self)
        self._inbox.close()
        self._events.close()


@define(eq=False)
class EventHub:
    """Where events come in, and from where every subscriber gets those it wants."""

    _now_ns: Callable[[], int] = time.time_ns
    _subscriptions: list[Subscription] = field(init=False, factory=list)

    def publish(self, sandbox_id: str, action: Action, attributes: Mapping[str, str] | None = None) -> None:
        """Tell of something that happens now. Nobody is waited for."""
        event = Event(sandbox_id, action, self._now_ns(), attributes or {})
        self._subscriptions = [subscription for subscription in self._subscriptions if subscription.offer(event)]

    def subscribe(self, sandbox_id: str = "", action: Action | None = None) -> Subscription:
        """Begin to collect events.

        Args:
            sandbox_id: of one sandbox only, which need not exist yet; empty for all.
            action: only those; None for all.
        """
        subscription = Subscription(sandbox_id, action, self._unsubscribe)
        self._subscriptions.append(subscription)
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
