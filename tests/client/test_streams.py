"""Runs, execs and events as objects."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import AgentClient, Completed, OutputChunk, errors
from arcbox_client.testing import FakeAgent, Request, memory_pair
from arcbox_protocol import ErrorReply, MessageType, arcbox_v1, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_client.testing import Answer

Pair = tuple[AgentClient, FakeAgent]
KIBIBYTE = 1024
PONG = arcbox_v1.AgentPingResponse(message="pong")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with memory_pair() as both:
        yield both


def run_output(stream: str, data: bytes) -> Answer:
    return sandbox_v1.RunOutput(stream=stream, data=data)


def run_end(exit_code: int) -> Answer:
    return sandbox_v1.RunOutput(stream="exit", exit_code=exit_code, done=True)


def exec_output(data: bytes, stream: str = "stdout") -> Answer:
    return sandbox_v1.ExecOutput(stream=stream, data=data)


def exec_end(exit_code: int) -> Answer:
    return sandbox_v1.ExecOutput(stream="exit", exit_code=exit_code, done=True)


SAY_HELLO: list[Answer] = [
    run_output("stdout", b"hel"),
    run_output("stderr", b"oh"),
    run_output("stdout", b"lo"),
    run_end(3),
]


async def test_the_output_of_a_run_comes_in_order_and_the_exit_code_after_it() -> None:
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: SAY_HELLO}) as (client, agent),
        client.sandbox_run("box", ["sh", "-c", "x"], env={"A": "b"}, user="me", timeout=9) as session,
    ):
        chunks = [chunk async for chunk in session]
        assert chunks == [OutputChunk("stdout", b"hel"), OutputChunk("stderr", b"oh"), OutputChunk("stdout", b"lo")]
        assert session.exit_code == 3
        assert [chunk async for chunk in session] == []
    assert agent.requests[0].message == sandbox_v1.RunRequest(
        id="box", cmd=["sh", "-c", "x"], env={"A": "b"}, user="me", timeout_seconds=9
    )


async def test_there_is_no_exit_code_before_the_end() -> None:
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: SAY_HELLO}) as (client, _),
        client.sandbox_run("box", ["x"]) as session,
    ):
        async for _ in session:
            assert session.exit_code is None
        assert session.exit_code == 3


async def test_collect_keeps_stdout_and_stderr_apart() -> None:
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: SAY_HELLO}) as (client, _),
        client.sandbox_run("box", ["x"]) as session,
    ):
        assert await session.collect() == Completed(exit_code=3, stdout=b"hello", stderr=b"oh")


async def test_wait_returns_the_exit_code_and_again_later() -> None:
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: SAY_HELLO}) as (client, _),
        client.sandbox_run("box", ["x"]) as session,
    ):
        assert await session.wait() == 3
        assert await session.wait() == 3


async def test_output_in_the_last_frame_is_not_lost() -> None:
    last = sandbox_v1.RunOutput(stream="stdout", data=b"bye", exit_code=0, done=True)
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: last}) as (client, _),
        client.sandbox_run("box", ["x"]) as session,
    ):
        assert await session.collect() == Completed(0, b"bye", b"")


async def test_a_run_that_the_agent_refuses_raises_at_the_first_read_and_at_every_later_one() -> None:
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: ErrorReply(404, "no such sandbox")}) as (client, _),
        client.sandbox_run("box", ["x"]) as session,
    ):
        for _ in range(2):
            with pytest.raises(errors.NotFoundError, match="no such sandbox"):
                await session.wait()


async def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_before_it() -> None:
    answers = [run_output("stdout", b"some"), ErrorReply(500, "the runtime died")]
    async with (
        memory_pair({MessageType.SandboxRunRequest: lambda _: answers}) as (client, _),
        client.sandbox_run("box", ["x"]) as session,
    ):
        assert await anext(session) == OutputChunk("stdout", b"some")
        with pytest.raises(errors.InternalError):
            await anext(session)


async def test_a_stream_whose_connection_ends_first_says_so_after_what_had_come(pair: Pair) -> None:
    client, agent = pair
    async with client.sandbox_run("box", ["x"]) as session:
        request = await agent.receive()
        await agent.reply(request, run_output("stdout", b"some"))
        await agent.close()
        assert await anext(session) == OutputChunk("stdout", b"some")
        with pytest.raises(errors.ConnectionLostError, match="the agent closed the connection"):
            await anext(session)
        assert session.exit_code is None


async def test_a_stream_on_a_lost_connection_fails_at_once(pair: Pair) -> None:
    client, agent = pair
    await agent.close()
    with pytest.raises(errors.ConnectionLostError):
        await client.ping()
    with pytest.raises(errors.ConnectionLostError):
        async with client.sandbox_run("box", ["x"]):
            pytest.fail("there is no stream")


async def test_streams_and_requests_interleave_on_one_connection(pair: Pair) -> None:
    client, agent = pair
    async with client.sandbox_run("a", ["x"]) as a, client.sandbox_run("b", ["x"]) as b:
        to_a, to_b = await agent.receive(), await agent.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            ping = await agent.receive()
            await agent.reply(to_b, run_output("stdout", b"for b"))
            await agent.reply(to_a, run_output("stdout", b"for a"))
            await agent.reply(ping, PONG)
        await agent.reply(to_a, run_end(1))
        await agent.reply(to_b, run_end(2))
        assert await a.collect() == Completed(1, b"for a", b"")
        assert await b.collect() == Completed(2, b"for b", b"")


async def test_what_comes_after_an_early_leave_is_dropped_and_the_client_goes_on(pair: Pair) -> None:
    client, agent = pair
    async with client.sandbox_run("box", ["x"]):
        request = await agent.receive()
    await agent.reply(request, run_output("stdout", b"too late"))
    await agent.reply(request, run_end(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ping)
        await agent.reply(await agent.receive(), PONG)


async def test_stdin_resize_and_end_of_stdin_go_to_their_session(pair: Pair) -> None:
    client, agent = pair
    async with client.sandbox_exec("box", ["cat"], tty=True, tty_size=(1, 2)) as session:
        await session.send_stdin(b"some")
        await session.send_stdin(b"")
        await session.resize(columns=120, rows=40)
        await session.close_stdin()
        await session.close_stdin()
        requests = [await agent.receive() for _ in range(4)]
    assert requests[0].message == sandbox_v1.ExecRequest(
        id="box", cmd=["cat"], tty=True, tty_size=sandbox_v1.TerminalSize(width=1, height=2)
    )
    assert {request.trace_id for request in requests} == {requests[0].trace_id}
    assert [(request.type, request.payload) for request in (requests[1], requests[3])] == [
        (MessageType.SandboxExecInput, b"some"),
        (MessageType.SandboxExecInput, b""),
    ]
    assert requests[2].message == sandbox_v1.TerminalSize(width=120, height=40)


async def test_stdin_that_was_closed_takes_nothing_more(pair: Pair) -> None:
    client, _ = pair
    async with client.sandbox_exec("box", ["cat"]) as session:
        await session.close_stdin()
        with pytest.raises(trio.ClosedResourceError):
            await session.send_stdin(b"more")


async def test_long_stdin_is_cut_into_frames_that_every_agent_takes(pair: Pair) -> None:
    client, agent = pair
    data = bytes(range(256)) * (4 * KIBIBYTE)  # 1 MiB
    async with client.sandbox_exec("box", ["cat"]) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.send_stdin, data)
        await agent.receive()
        received = b""
        while len(received) < len(data):
            request = await agent.receive()
            assert len(request.payload) <= 64 * KIBIBYTE
            received += request.payload
    assert received == data


async def serve_cat(agent: FakeAgent) -> None:
    """Answer one exec with its own stdin."""
    request = await agent.receive()
    while (chunk := await agent.receive()).payload:
        await agent.reply(request, exec_output(chunk.payload))
    await agent.reply(request, exec_end(0))


async def test_communicate_feeds_stdin_and_reads_output_at_once(pair: Pair) -> None:
    client, agent = pair
    data = b"0123456789abcdef" * (256 * KIBIBYTE)  # 4 MiB: more than all buffers on the way
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_cat, agent)
        async with client.sandbox_exec("box", ["cat"]) as session:
            assert await session.communicate(data) == Completed(0, data, b"")


async def test_communicate_with_a_process_that_does_not_read_ends_when_it_does(pair: Pair) -> None:
    client, agent = pair

    async def ends_at_once() -> None:
        await agent.reply(await agent.receive(), exec_end(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends_at_once)
        async with client.sandbox_exec("box", ["true"]) as session:
            assert await session.communicate(bytes(8 * KIBIBYTE * KIBIBYTE)) == Completed(1, b"", b"")


async def test_events_come_as_they_happen_once_the_agent_has_begun_to_tell_them(pair: Pair) -> None:
    client, agent = pair
    events_of_box = sandbox_v1.SandboxEventsRequest(id="box", action="idle")
    event = sandbox_v1.SandboxEvent(sandbox_id="box", action="idle", timestamp=5, attributes={"exit_code": "0"})

    async def tell() -> None:
        request = await agent.receive()
        assert request.message == events_of_box
        await agent.reply(request, event)
        await agent.reply(await agent.receive(), PONG)  # whoever answers this has begun with what came before it
        await agent.reply(request, ErrorReply(503, "fell behind"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        async with client.sandbox_events("box", action="idle") as events:
            assert await anext(events) == event
            with pytest.raises(errors.UnavailableError, match="fell behind"):
                await anext(events)


async def flood(agent: FakeAgent, request: Request, frames: int, sent: list[int]) -> None:
    for number in range(frames):
        await agent.reply(request, run_output("stdout", bytes(64 * KIBIBYTE)))
        sent.append(number)
    await agent.reply(request, run_end(0))


async def test_a_consumer_that_does_not_read_stops_the_agent() -> None:
    """Over a stream without a buffer of its own, so that what was sent is what the client took."""
    client_side, agent_side = trio.testing.lockstep_stream_pair()
    agent, sent, frames = FakeAgent(agent_side), list[int](), 100
    async with (
        AgentClient.over(client_side) as client,
        trio.open_nursery() as nursery,
        client.sandbox_run("box", ["x"]) as session,
    ):
        request = await agent.receive()
        nursery.start_soon(flood, agent, request, frames, sent)
        await trio.testing.wait_all_tasks_blocked()
        assert 16 <= len(sent) <= 18  # 1 MiB, and what one receive brought
        completed = await session.collect()
        assert len(completed.stdout) == frames * 64 * KIBIBYTE


async def test_leaving_a_stream_that_is_full_sets_the_others_free() -> None:
    client_side, agent_side = trio.testing.lockstep_stream_pair()
    agent, sent = FakeAgent(agent_side), list[int]()
    async with AgentClient.over(client_side) as client, trio.open_nursery() as nursery:
        async with client.sandbox_run("box", ["x"]):
            request = await agent.receive()
            nursery.start_soon(flood, agent, request, 50, sent)
            await trio.testing.wait_all_tasks_blocked()
            assert len(sent) < 50
        await trio.testing.wait_all_tasks_blocked()
        assert len(sent) == 50
        nursery.start_soon(client.ping)
        await agent.reply(await agent.receive(), PONG)


@pytest.mark.parametrize("frames_first", [0, 1, 40])
async def test_cancelling_a_consumer_in_any_phase_leaves_the_client_usable(frames_first: int) -> None:
    async with memory_pair() as (client, agent):
        with trio.CancelScope() as scope:
            async with client.sandbox_run("box", ["x"]) as session, trio.open_nursery() as nursery:
                nursery.start_soon(session.wait)
                request = await agent.receive()
                for _ in range(frames_first):
                    await agent.reply(request, run_output("stdout", bytes(64 * KIBIBYTE)))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            await agent.reply(await agent.receive(), PONG)
    gc.collect()


async def test_notifications_come_without_having_been_asked_for(pair: Pair) -> None:
    client, agent = pair
    changed = arcbox_v1.PortBindingsChanged(
        container_id="c", bindings=[arcbox_v1.PortBinding(container_port=80, host_port=8080, protocol="tcp")]
    )
    removed = arcbox_v1.PortBindingsRemoved(container_id="c")
    await agent.send(MessageType.PortBindingsChanged, "", changed.SerializeToString())
    await agent.send(MessageType.PortBindingsRemoved, "any", removed.SerializeToString())
    assert await anext(client.notifications) == changed
    assert await anext(client.notifications) == removed
    await agent.close()
    with pytest.raises(errors.ConnectionLostError):
        await anext(client.notifications)


async def test_notifications_that_nobody_takes_are_bounded_and_the_gap_is_told(pair: Pair) -> None:
    client, agent = pair
    for number in range(1024 + 3):
        removed = arcbox_v1.PortBindingsRemoved(container_id=str(number))
        await agent.send(MessageType.PortBindingsRemoved, "", removed.SerializeToString())
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(errors.NotificationsMissedError) as caught:
        await anext(client.notifications)
    assert caught.value.count == 3
    assert (await anext(client.notifications)).container_id == "3"
