"""PauseSandbox, ResumeSandbox and SetLifecycle over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arcbox_guest.sandboxes.model import IdleAction
from arcbox_protocol import MessageType, sandbox_v1
from arcbox_protocol import arcbox_sandbox_v1 as v1

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.handlers.sandboxes.conftest import Rig

T = MessageType


async def test_a_paused_sandbox_says_so_and_refuses_with_423(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    frame = await rig.ask(T.PauseSandboxRequest, v1.PauseSandboxRequest(id="box"))
    assert (frame.type, frame.payload) == (T.PauseSandboxResponse, b"")
    requests: list[tuple[MessageType, Message]] = [
        (T.SandboxRunRequest, sandbox_v1.RunRequest(id="box", cmd=["true"])),
        (T.SandboxExecRequest, sandbox_v1.ExecRequest(id="box", cmd=["true"])),
        (T.StartExecutionRequest, v1.StartExecutionRequest(sandbox_id="box", cmd=["true"])),
    ]
    for kind, request in requests:
        refusal = await rig.refusal(kind, request)
        assert (refusal.code, "box is paused" in refusal.message) == (423, True)
    await rig.peer.send(T.SandboxInspectRequest, sandbox_v1.InspectSandboxRequest(id="box"), trace_id="t")
    assert (await rig.next(sandbox_v1.SandboxInfo)).state == "paused"
    await rig.peer.send(T.SandboxListRequest, sandbox_v1.ListSandboxesRequest(state="paused"), trace_id="t")
    assert [sandbox.id for sandbox in (await rig.next(sandbox_v1.ListSandboxesResponse)).sandboxes] == ["box"]
    frame = await rig.ask(T.ResumeSandboxRequest, v1.SandboxResumeCommand(id="box", reason="needed"))
    assert frame.type == T.ResumeSandboxResponse
    assert v1.SandboxResumeResponse.FromString(frame.payload) == v1.SandboxResumeResponse()  # it has no network
    assert rig.sandboxes.manager.get("box").state == "ready"


async def test_what_can_not_be_paused_or_resumed_is_error_412_and_what_is_not_there_404(rig: Rig) -> None:
    assert (await rig.refusal(T.PauseSandboxRequest, v1.PauseSandboxRequest(id="box"))).code == 404
    assert (await rig.refusal(T.SetLifecycleRequest, v1.SetLifecycleRequest(id="box"))).code == 404
    await rig.sandboxes.create("box")
    assert (await rig.refusal(T.ResumeSandboxRequest, v1.SandboxResumeCommand(id="box"))).code == 412


async def set_lifecycle(rig: Rig, request: v1.SetLifecycleRequest) -> tuple[bool, float, IdleAction]:
    """Whether it has a time to live then, how long it may be idle, and what happens then."""
    frame = await rig.ask(T.SetLifecycleRequest, request)
    assert (frame.type, frame.payload) == (T.SetLifecycleResponse, b"")
    sandbox = rig.sandboxes.manager.get("box")
    return sandbox.expires_at > 0, sandbox.idle_timeout, sandbox.on_idle


async def test_each_limit_is_left_as_it_is_replaced_or_taken_away(rig: Rig) -> None:
    await rig.sandboxes.create("box", ttl=100)
    request = v1.SetLifecycleRequest(id="box", idle_timeout_seconds=7, on_idle=v1.IDLE_ACTION_PAUSE)
    assert await set_lifecycle(rig, request) == (True, 7, IdleAction.PAUSE)
    assert await set_lifecycle(rig, v1.SetLifecycleRequest(id="box", ttl_seconds=0)) == (False, 7, IdleAction.PAUSE)
    request = v1.SetLifecycleRequest(id="box", ttl_seconds=50, on_idle=v1.IDLE_ACTION_UNSPECIFIED)
    assert await set_lifecycle(rig, request) == (True, 7, IdleAction.KILL)
    request = v1.SetLifecycleRequest(id="box", idle_timeout_seconds=0, on_idle=v1.IDLE_ACTION_KILL)
    assert await set_lifecycle(rig, request) == (True, 0, IdleAction.KILL)


@pytest.mark.parametrize("number", [3, 77])
async def test_an_idle_action_that_nobody_knows_is_error_400(rig: Rig, number: int) -> None:
    await rig.sandboxes.create("box")
    payload = b"\x0a\x03box\x20" + bytes([number])  # an open enum: it takes numbers that have no name
    refusal = await rig.refusal(T.SetLifecycleRequest, payload)
    assert (refusal.code, refusal.message) == (400, f"{number} is no idle action: KILL is 1, PAUSE is 2")
