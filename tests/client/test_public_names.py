"""What a program imports from `arcbox_client`, and what it may say to it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest
import trio.testing

import arcbox_client
from arcbox_client import AgentClient, SandboxFailedError, TimedOutError, errors
from arcbox_client.testing import memory_pair
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from arcbox_client.testing import Request, Script

NOT_RETURNED = {
    "MmapReadFileResponse",
    "RunOutput",
    "ExecOutput",
    "MachineExecOutput",
    "SandboxPortForwardResponse",
    "FileChunk",
    "FileStat",
    "ListDirResponse",
    "WatchDirResponse",
    "ListExecutionsResponse",
}
"""Messages of replies that methods return as something else: bytes, numbers, objects of their own."""


def test_every_message_that_a_method_returns_can_be_imported_from_the_package() -> None:
    replies = {exchange.reply_message.DESCRIPTOR.name for exchange in EXCHANGES.values() if exchange.reply_message}
    assert replies - NOT_RETURNED <= set(arcbox_client.__all__)


def test_every_error_can_be_imported_from_the_package() -> None:
    kinds = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert kinds <= set(arcbox_client.__all__)


def test_every_public_name_is_there() -> None:
    for name in arcbox_client.__all__:
        assert getattr(arcbox_client, name) is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.sandbox_create("box", cmd="sleep 5"),
        lambda c: c.sandbox_create("box", cmd=["sleep", 5]),
        lambda c: c.run("box", "echo hi"),
        lambda c: c.run("box", b"echo hi"),
        lambda c: c.sandbox_run("box", "echo hi").__aenter__(),
    ],
)
async def test_a_command_that_is_no_list_of_texts_is_a_type_error(
    call: Callable[[AgentClient], Awaitable[object]],
) -> None:
    async with memory_pair({}) as (client, agent):
        with pytest.raises(TypeError, match="argument"):
            await call(client)
    assert agent.requests == []


def starting(states: list[str], error: str = "") -> Script:
    """An agent whose new sandbox is in these states one after the other, with an event before each."""
    left = list(states)

    def inspected(_: Request) -> sandbox_v1.SandboxInfo | ErrorReply:
        state = left.pop(0) if len(left) > 1 else left[0]
        return sandbox_v1.SandboxInfo(id="box", state=state, error=error) if state else ErrorReply(404, "no such box")

    happened = sandbox_v1.SandboxEvent(sandbox_id="box", action="created")
    return {
        MessageType.PingRequest: lambda _: b"",
        MessageType.SandboxEventsRequest: lambda _: [happened for _ in states],
        MessageType.SandboxInspectRequest: inspected,
        MessageType.SandboxCreateRequest: lambda _: sandbox_v1.CreateSandboxResponse(id="box", state="starting"),
    }


async def test_a_sandbox_that_is_waited_for_is_ready_when_create_returns() -> None:
    async with memory_pair(starting(["starting", "starting", "running"])) as (client, _):
        assert (await client.sandbox_create("box", wait=True)).state == "running"


@pytest.mark.parametrize(
    ("states", "said", "state", "text"),
    [
        (["starting", "failed"], "no such user", "failed", "sandbox box has failed: no such user"),
        (["stopped"], "", "stopped", "sandbox box is stopped: before it was ready"),
        (["starting", ""], "", "removed", "sandbox box was removed: before it was ready"),
    ],
)
async def test_a_sandbox_that_does_not_get_ready_is_an_error_that_says_why(
    states: list[str], said: str, state: str, text: str
) -> None:
    async with memory_pair(starting(states, said)) as (client, _):
        with pytest.raises(SandboxFailedError) as caught:
            await client.sandbox_wait_ready("box")
    assert (caught.value.id, caught.value.state, str(caught.value)) == ("box", state, text)


async def test_waiting_for_a_sandbox_ends_when_a_slow_request_would(autojump_clock: MockClock) -> None:
    async with memory_pair(starting(["starting"])) as (client, _):
        with pytest.raises(TimedOutError, match="sandbox box is not ready within 300 s"):
            await client.sandbox_wait_ready("box")


async def test_run_returns_what_a_command_wrote_and_how_it_ended() -> None:
    async def cat() -> None:
        request = await agent.receive()
        assert request.message == sandbox_v1.ExecRequest(id="box", cmd=["cat"], env={"A": "b"}, timeout_seconds=3)
        while (stdin := await agent.receive()).payload:
            await agent.reply(request, sandbox_v1.ExecOutput(stream="stdout", data=stdin.payload))
        await agent.reply(request, sandbox_v1.ExecOutput(stream="exit", exit_code=3, done=True))

    async with memory_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(cat)
        done = await client.run("box", ["cat"], stdin=b"some", env={"A": "b"}, timeout=3)
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"some", b"")


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (
            sandbox_v1.SandboxInfo(state="ready", error="oom: the memory limit was reached"),
            "oom",
        ),
        (sandbox_v1.SandboxInfo(state="ready", error="timeout: it was killed after 3 s"), "timeout"),
        (sandbox_v1.SandboxInfo(state="ready"), None),
        (sandbox_v1.SandboxInfo(state="stopping"), "expired"),
        (ErrorReply(404, "no such sandbox"), "removed"),
    ],
)
async def test_run_says_why_what_it_ran_was_killed(
    info: sandbox_v1.SandboxInfo | ErrorReply, reason: str | None
) -> None:
    killed = sandbox_v1.ExecOutput(stream="exit", exit_code=137, done=True)
    removed = sandbox_v1.SandboxEvent(sandbox_id="box", action="removed", attributes={"reason": "expired"})
    script: Script = {
        MessageType.PingRequest: lambda _: b"",
        MessageType.SandboxExecRequest: lambda _: [killed],
        MessageType.SandboxInspectRequest: lambda _: info,
        MessageType.SandboxEventsRequest: lambda _: [removed],
    }
    async with memory_pair(script) as (client, _):
        done = await client.run("box", ["sleep", "9"])
    assert (done.exit_code, done.reason) == (137, reason)
