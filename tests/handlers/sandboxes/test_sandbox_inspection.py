"""Inspect and List: what is known of sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.testing import memory_connection
from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes.model import Action, ResourceLimits
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    import trio

    from tests.handlers.sandboxes.conftest import Rig

INSPECT, LIST = MessageType.SandboxInspectRequest, MessageType.SandboxListRequest


async def test_inspect_tells_all_that_is_known(rig: Rig) -> None:
    before = int(rig.sandboxes.manager._times.now())
    with rig.sandboxes.events.subscribe("box", Action.IDLE) as idle:
        await rig.sandboxes.create(
            "box", labels={"a": "b"}, limits=ResourceLimits(vcpus=3, memory_mib=64), cmd=("sh", "-c", "exit 7")
        )
        await anext(idle)
    frame = await rig.ask(INSPECT, sandbox_v1.InspectSandboxRequest(id="box"))
    after = int(rig.sandboxes.manager._times.now())
    assert frame.type == MessageType.SandboxInspectResponse
    info = sandbox_v1.SandboxInfo.FromString(frame.payload)
    assert before <= info.created_at <= info.ready_at <= info.last_exited_at <= after
    for name in ("created_at", "ready_at", "last_exited_at"):
        info.ClearField(name)
    assert info == sandbox_v1.SandboxInfo(
        id="box",
        state="ready",
        labels={"a": "b"},
        limits=sandbox_v1.ResourceLimits(vcpus=3, memory_mib=64),
        network=sandbox_v1.SandboxNetwork(),
        last_exit_code=7,
    )


async def test_inspect_of_one_that_failed_says_why(rig: Rig) -> None:
    rig.sandboxes.driver.faults["create"] = GuestError("crun create: no space left on device")
    await rig.sandboxes.create("box", until=Action.FAILED)
    frame = await rig.ask(INSPECT, sandbox_v1.InspectSandboxRequest(id="box"))
    info = sandbox_v1.SandboxInfo.FromString(frame.payload)
    assert (info.state, info.error) == ("failed", "crun create: no space left on device")
    assert (info.ready_at, info.last_exited_at) == (0, 0)


async def listed(rig: Rig, **filters: Any) -> list[sandbox_v1.SandboxSummary]:  # noqa: ANN401  a state or labels
    frame = await rig.ask(LIST, sandbox_v1.ListSandboxesRequest(**filters))
    assert frame.type == MessageType.SandboxListResponse
    return list(sandbox_v1.ListSandboxesResponse.FromString(frame.payload).sandboxes)


async def test_list_tells_each_in_short_the_oldest_first(rig: Rig) -> None:
    b = await rig.sandboxes.create("b", labels={"x": "1"})
    a = await rig.sandboxes.create("a", until=Action.RUNNING, cmd=("sleep", "9"))
    assert await listed(rig) == [
        sandbox_v1.SandboxSummary(id="b", state="ready", labels={"x": "1"}, created_at=int(b.created_at)),
        sandbox_v1.SandboxSummary(id="a", state="running", created_at=int(a.created_at)),
    ]


async def test_list_filters_by_state_and_by_all_labels(rig: Rig) -> None:
    await rig.sandboxes.create("a", labels={"x": "1", "y": "2"})
    await rig.sandboxes.create("b", labels={"x": "1"})
    await rig.sandboxes.create("c", labels={"x": "1"}, until=Action.RUNNING, cmd=("sleep", "9"))
    assert [one.id for one in await listed(rig, labels={"x": "1", "y": "2"})] == ["a"]
    assert [one.id for one in await listed(rig, state="ready", labels={"x": "1"})] == ["a", "b"]
    assert await listed(rig, state="failed") == []


async def test_a_state_that_there_is_not_is_error_400_with_those_that_there_are(rig: Rig) -> None:
    refusal = await rig.refusal(LIST, sandbox_v1.ListSandboxesRequest(state="runing"))
    assert refusal.code == 400
    assert "running" in refusal.message


@pytest.mark.parametrize(
    ("kind", "reply"),
    [(LIST, MessageType.SandboxListResponse), (INSPECT, MessageType.SandboxInspectResponse)],
)
async def test_a_request_that_comes_before_the_records_were_read_waits_for_them(
    rig: Rig, nursery: trio.Nursery, kind: MessageType, reply: MessageType
) -> None:
    await rig.sandboxes.create("box")
    await wait_all_tasks_blocked()  # now its record is written
    restarted = type(rig.sandboxes).of(rig.sandboxes.driver, rig.sandboxes.records)
    async with memory_connection(guest=restarted.guest) as peer:
        await peer.send(kind, sandbox_v1.InspectSandboxRequest(id="box") if kind == INSPECT else b"")
        await wait_all_tasks_blocked()
        nursery.start_soon(restarted.manager.run)
        assert (await peer.receive()).type == reply
