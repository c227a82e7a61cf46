"""Who gets which events, and what becomes of subscribers who do not read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import UnavailableError
from arcbox_guest.sandboxes.events import BACKLOG, Event, EventHub
from arcbox_guest.sandboxes.model import Action

if TYPE_CHECKING:
    from trio.testing import MockClock

    from arcbox_guest.sandboxes.events import Subscription


async def taken(subscription: Subscription) -> list[Event]:
    """What a subscriber can have without waiting."""
    events: list[Event] = []
    with trio.move_on_after(0.1):
        async for event in subscription:
            events.append(event)  # noqa: PERF401  what came is wanted even when the wait for more is cut short
    return events


async def test_an_event_says_what_happened_to_whom_and_when(autojump_clock: MockClock) -> None:
    hub = EventHub(lambda: 1_767_225_600_123_456_789)
    with hub.subscribe() as subscription:
        hub.publish("web", Action.IDLE, {"exit_code": "3"})
        assert await taken(subscription) == [Event("web", Action.IDLE, 1_767_225_600_123_456_789, {"exit_code": "3"})]


@pytest.mark.parametrize(
    ("sandbox_id", "action", "wanted"),
    [
        ("", None, ["a created", "b created", "a ready", "b failed"]),
        ("a", None, ["a created", "a ready"]),
        ("", Action.CREATED, ["a created", "b created"]),
        ("b", Action.FAILED, ["b failed"]),
        ("c", None, []),
    ],
)
async def test_a_filter_lets_through_what_matches_all_of_it(
    autojump_clock: MockClock, sandbox_id: str, action: Action | None, wanted: list[str]
) -> None:
    hub = EventHub()
    with hub.subscribe(sandbox_id, action) as subscription:
        for subject, what in [("a", "created"), ("b", "created"), ("a", "ready"), ("b", "failed")]:
            hub.publish(subject, Action(what))
        assert [f"{event.sandbox_id} {event.action}" for event in await taken(subscription)] == wanted


async def test_events_from_before_the_subscription_are_not_in_it(autojump_clock: MockClock) -> None:
    hub = EventHub()
    hub.publish("a", Action.CREATED)
    with hub.subscribe() as subscription:
        hub.publish("a", Action.READY)
        assert [event.action for event in await taken(subscription)] == [Action.READY]


async def test_a_subscriber_waits_for_what_has_not_happened_yet(autojump_clock: MockClock) -> None:
    hub = EventHub()
    got: list[Event] = []

    async def read(subscription: Subscription) -> None:
        got.append(await anext(subscription))

    with hub.subscribe() as subscription:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, subscription)
            await wait_all_tasks_blocked()
            assert got == []
            hub.publish("a", Action.CREATED)
    assert [event.action for event in got] == [Action.CREATED]


async def test_a_subscriber_may_be_behind_by_as_many_events_as_are_kept(autojump_clock: MockClock) -> None:
    hub = EventHub()
    with hub.subscribe() as subscription:
        for number in range(BACKLOG):
            hub.publish(str(number), Action.CREATED)
        assert [event.sandbox_id for event in await taken(subscription)] == [str(number) for number in range(BACKLOG)]
        hub.publish("one more", Action.CREATED)
        assert [event.sandbox_id for event in await taken(subscription)] == ["one more"]


async def test_a_subscriber_that_falls_behind_gets_what_it_had_and_then_an_error_never_a_gap(
    autojump_clock: MockClock,
) -> None:
    hub = EventHub()
    with hub.subscribe() as slow, hub.subscribe() as other:
        for number in range(BACKLOG + 1):
            hub.publish(str(number), Action.CREATED)
            await anext(other)
        hub.publish("later", Action.CREATED)
        for number in range(BACKLOG):
            assert (await anext(slow)).sandbox_id == str(number)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="events were lost: more than 1024"):
                await anext(slow)
        assert [event.sandbox_id for event in await taken(other)] == ["later"]


async def test_what_is_filtered_out_counts_for_nothing(autojump_clock: MockClock) -> None:
    hub = EventHub()
    with hub.subscribe("quiet") as subscription:
        for _ in range(2 * BACKLOG):
            hub.publish("noisy", Action.CREATED)
        hub.publish("quiet", Action.CREATED)
        assert [event.sandbox_id for event in await taken(subscription)] == ["quiet"]


def test_a_subscription_that_has_ended_collects_nothing() -> None:
    hub = EventHub()
    with hub.subscribe():
        assert len(hub._subscriptions) == 1
    assert hub._subscriptions == []
    hub.publish("a", Action.CREATED)
