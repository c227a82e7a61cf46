"""Events: which are told, in what words, and what becomes of a subscriber that falls behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from trio.testing import wait_all_tasks_blocked

from arcbox_guest.sandboxes.events import BACKLOG
from arcbox_guest.sandboxes.model import Action
from arcbox_protocol import ErrorReply, MessageType, sandbox_v1

if TYPE_CHECKING:
    from tests.handlers.sandboxes.conftest import Rig

EVENTS = MessageType.SandboxEventsRequest


async def subscribe(rig: Rig, sandbox_id: str = "", action: str = "", trace_id: str = "t") -> None:
    request = sandbox_v1.SandboxEventsRequest(id=sandbox_id, action=action)
    await rig.peer.send(EVENTS, request, trace_id=trace_id)
    await wait_all_tasks_blocked()


async def test_an_event_is_told_with_its_time_and_its_attributes(rig: Rig) -> None:
    await subscribe(rig)
    before = time.time_ns()
    rig.sandboxes.events.publish("box", Action.IDLE, {"exit_code": "3"})
    frame = await rig.peer.receive()
    assert (frame.type, frame.trace_id) == (MessageType.SandboxEvent, "t")
    event = sandbox_v1.SandboxEvent.FromString(frame.payload)
    assert before <= event.timestamp <= time.time_ns()
    event.ClearField("timestamp")
    assert event == sandbox_v1.SandboxEvent(sandbox_id="box", action="idle", attributes={"exit_code": "3"})


async def test_every_action_has_its_name(rig: Rig) -> None:
    await subscribe(rig)
    names = ["created", "ready", "running", "idle", "paused", "resumed"]
    names += ["stopping", "stopped", "failed", "removed"]
    for action in Action:
        rig.sandboxes.events.publish("box", action)
    assert [(await rig.next(sandbox_v1.SandboxEvent)).action for _ in names] == names


async def test_the_filter_is_the_requests(rig: Rig) -> None:
    await subscribe(rig, "box", "ready")
    for sandbox_id, action in [("other", Action.READY), ("box", Action.CREATED), ("box", Action.READY)]:
        rig.sandboxes.events.publish(sandbox_id, action)
    event = await rig.next(sandbox_v1.SandboxEvent)
    assert (event.sandbox_id, event.action) == ("box", "ready")


async def test_an_action_that_there_is_not_is_error_400_with_those_that_there_are(rig: Rig) -> None:
    refusal = await rig.refusal(EVENTS, sandbox_v1.SandboxEventsRequest(action="redy"))
    assert refusal.code == 400
    assert "ready" in refusal.message


async def test_a_subscriber_that_falls_behind_gets_all_it_had_and_then_error_503(rig: Rig) -> None:
    await subscribe(rig)
    for _ in range(BACKLOG + 2):
        rig.sandboxes.events.publish("box", Action.RUNNING)
    count = 0
    while (frame := await rig.peer.receive()).type == MessageType.SandboxEvent:
        count += 1
    assert count >= BACKLOG
    assert (frame.type, frame.trace_id) == (MessageType.Error, "t")
    assert ErrorReply.decode(frame.payload).code == 503
    assert (await rig.ask(MessageType.PingRequest)).type == MessageType.PingResponse


async def test_the_life_of_a_sandbox_is_told_from_before_it_is_created(rig: Rig) -> None:
    await subscribe(rig, "box")
    await rig.sandboxes.create("box", cmd=("sh", "-c", "exit 7"))
    told = [await rig.next(sandbox_v1.SandboxEvent) for _ in range(4)]
    assert [event.action for event in told] == ["created", "ready", "running", "idle"]
    assert told[-1].attributes == {"exit_code": "7"}


async def test_two_subscribers_on_one_connection_each_get_theirs(rig: Rig) -> None:
    await subscribe(rig, "a", trace_id="1")
    await subscribe(rig, "b", trace_id="2")
    rig.sandboxes.events.publish("b", Action.READY)
    rig.sandboxes.events.publish("a", Action.READY)
    seen = [await rig.peer.receive() for _ in range(2)]
    assert {(frame.trace_id, sandbox_v1.SandboxEvent.FromString(frame.payload).sandbox_id) for frame in seen} == {
        ("1", "a"),
        ("2", "b"),
    }


async def test_the_peer_going_away_ends_the_subscription(rig: Rig) -> None:
    await subscribe(rig)
    rig.hang_up()
    await wait_all_tasks_blocked()
    assert rig.sandboxes.events._subscriptions == []
