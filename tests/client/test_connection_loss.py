"""What those who wait learn when a connection ends, and what a connection survives."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import trio

from arcbox_client import AgentClient, connect, errors
from arcbox_client.testing import FakeAgent, memory_pair
from arcbox_protocol import ErrorReply, MessageType, arcbox_v1, encode_frame, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    class Listener(Protocol):
        serve: Callable[[trio.SocketStream], Awaitable[None]] | None
        connections: list[trio.SocketStream]

        @property
        def address(self) -> str: ...
        def serve_agent(self, serve: Callable[[FakeAgent], Awaitable[None]]) -> None: ...


Pair = tuple[AgentClient, FakeAgent]
PONG = arcbox_v1.AgentPingResponse(message="pong")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with memory_pair() as both:
        yield both


def open_file_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def expect_loss(client: AgentClient, losses: list[errors.ConnectionLostError]) -> None:
    with pytest.raises(errors.ConnectionLostError) as caught:
        await client.ping()
    losses.append(caught.value)


async def test_everybody_who_waits_learns_that_the_agent_closed_the_connection(pair: Pair) -> None:
    client, agent = pair
    losses: list[errors.ConnectionLostError] = []
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(expect_loss, client, losses)
        for _ in range(5):
            await agent.receive()
        await agent.close()
    assert [str(loss) for loss in losses] == ["no connection to the agent: the agent closed the connection"] * 5
    assert len(set(map(id, losses))) == 5  # one for each: a traceback is nothing to share


async def test_a_request_after_the_connection_was_lost_says_why(pair: Pair) -> None:
    client, agent = pair
    await agent.close()
    for _ in range(2):
        with pytest.raises(errors.ConnectionLostError, match="the agent closed the connection"):
            await client.ping()


async def test_a_connection_that_ends_in_the_middle_of_a_frame_says_so(pair: Pair) -> None:
    client, agent = pair
    await agent.send_bytes(encode_frame(MessageType.PingResponse, "x", b"payload")[:-3])
    await agent.close()
    with pytest.raises(errors.ConnectionLostError, match="in the middle of a frame"):
        await client.ping()


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no frame: frame of 1213486160 bytes is over the limit"),
        (b"\0\0\0\3", "no frame: malformed frame: length 3"),
        (b"\0\0\0\x0a\0\0\0\1\0\xff....", "no frame: malformed frame: a trace id of 255 bytes"),
        (encode_frame(MessageType.PortBindingsChanged, "", b"\xff"), "PortBindingsChanged that does not parse"),
        (encode_frame(MessageType.Error, "", b"\0"), "an Error payload has at least 8 bytes"),
    ],
)
async def test_garbage_ends_the_connection_for_those_who_wait(pair: Pair, garbage: bytes, reason: str) -> None:
    client, agent = pair
    losses: list[errors.ConnectionLostError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_loss, client, losses)
        await agent.receive()
        await agent.send_bytes(garbage)
    assert reason in str(losses[0])


async def test_frames_that_nobody_asked_for_are_dropped(pair: Pair) -> None:
    client, agent = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ping)
        request = await agent.receive()
        await agent.send(MessageType.PingResponse, "")
        await agent.send(MessageType.PingResponse, "somebody else's")
        await agent.send(0x7777, "", b"of a later version")
        await agent.send(MessageType.Error, "somebody else's", ErrorReply(500, "not yours").encode())
        await agent.reply(request, PONG)


async def test_what_the_agent_said_before_it_closed_is_the_reason(pair: Pair) -> None:
    client, agent = pair
    losses: list[errors.ConnectionLostError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_loss, client, losses)
        await agent.receive()
        await agent.send(MessageType.Error, "", ErrorReply(504, "a frame was not finished").encode())
        await agent.close()
    assert losses[0].reply == ErrorReply(504, "a frame was not finished")
    assert "it said: a frame was not finished (504)" in str(losses[0])


async def test_an_agent_that_has_too_many_connections_says_so_even_to_who_writes_too_late(listener: Listener) -> None:
    async def refuse(agent: FakeAgent) -> None:
        await agent.send(MessageType.Error, "", ErrorReply(503, "too many connections").encode())

    listener.serve_agent(refuse)
    async with connect(listener.address) as client:
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(errors.ConnectionLostError, match=r"too many connections \(503\)") as caught:
            await client.ping()
    assert caught.value.reply is not None
    assert caught.value.reply.code == 503


async def test_requests_that_were_under_way_when_an_agent_died_learn_it(listener: Listener) -> None:
    async def die(agent: FakeAgent) -> None:
        for _ in range(3):
            await agent.receive()

    listener.serve_agent(die)
    losses: list[errors.ConnectionLostError] = []
    async with connect(listener.address) as client, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(expect_loss, client, losses)
    assert len(losses) == 3
    assert all(f"no connection to {listener.address}: " in str(loss) for loss in losses)


async def test_leaving_the_client_wakes_who_still_waits() -> None:
    losses: list[errors.ConnectionLostError] = []
    async with trio.open_nursery() as nursery, memory_pair() as (client, agent):
        nursery.start_soon(expect_loss, client, losses)
        await agent.receive()
    assert "the client was closed" in str(losses[0])
    with pytest.raises(errors.ConnectionLostError, match="the client was closed"):
        await client.ping()


async def test_a_request_cancelled_while_the_agent_does_not_read_leaves_no_half_frame_behind() -> None:
    """With a socket that takes only a part of the frame: the rest must follow although nobody waits for the reply."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    agent = FakeAgent(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    long_message = "x" * 300_000
    async with AgentClient.over(stream) as client:
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.ping, long_message)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping, "after")
            requests = [await agent.receive() for _ in range(4)]
            await agent.reply(requests[-1], PONG)
    messages = [arcbox_v1.AgentPingRequest.FromString(request.payload).message for request in requests]
    assert messages == [long_message, long_message, long_message, "after"]
    await agent.close()


async def test_a_frame_that_the_socket_took_half_of_is_finished_and_one_that_had_no_room_is_not_sent(
    listener: Listener,
) -> None:
    may_read, agents = trio.Event(), list[FakeAgent]()

    async def serve(agent: FakeAgent) -> None:
        agents.append(agent)
        await may_read.wait()
        await agent.serve({MessageType.PingRequest: lambda _: PONG})

    listener.serve_agent(serve)
    long_message = "x" * 3_000_000  # more than any socket takes at once
    async with connect(listener.address) as client:
        for message in (long_message, "no room"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.ping, message)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        may_read.set()
        assert await client.ping("after") == PONG
    messages = [arcbox_v1.AgentPingRequest.FromString(request.payload).message for request in agents[0].requests]
    assert messages == [long_message, "after"]


async def test_an_agent_that_only_stopped_reading_does_not_keep_anybody_waiting(
    listener: Listener, autojump_clock: trio.testing.MockClock
) -> None:
    async def stop_reading(stream: trio.SocketStream) -> None:
        stream.socket.shutdown(socket.SHUT_RD)
        await trio.sleep_forever()

    listener.serve = stop_reading
    async with connect(listener.address) as client:
        await trio.testing.wait_all_tasks_blocked()
        start = autojump_clock.current_time()
        with pytest.raises(errors.ConnectionLostError, match="broken pipe"):
            await client.ping()
    assert autojump_clock.current_time() - start < 5  # the time for saying why, not the deadline of the request


async def test_requests_to_an_agent_that_does_not_read_wait_and_memory_is_bounded() -> None:
    client_side, agent_side = trio.testing.lockstep_stream_pair()
    agent = FakeAgent(agent_side)
    done: list[int] = []
    async with (
        AgentClient.over(client_side) as client,
        client.sandbox_exec("box", ["cat"]) as session,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def feed() -> None:
            for number in range(64):
                await session.send_stdin(bytes(64 * 1024))
                done.append(number)

        await trio.testing.wait_all_tasks_blocked()
        assert len(done) <= 17  # 1 MiB of 4
        for _ in range(1 + 64):
            await agent.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert len(done) == 64
        nursery.cancel_scope.cancel()


async def test_who_waits_for_room_learns_that_the_connection_is_lost() -> None:
    client_side, agent_side = trio.testing.lockstep_stream_pair()
    async with (
        AgentClient.over(client_side) as client,
        client.sandbox_exec("box", ["cat"]) as session,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def feed() -> None:
            with pytest.raises(errors.ConnectionLostError):
                await session.send_stdin(bytes(4 * 1024 * 1024))
            nursery.cancel_scope.cancel()

        await trio.testing.wait_all_tasks_blocked()
        await agent_side.aclose()


async def test_a_stream_has_a_connection_of_its_own_that_ends_with_it(listener: Listener) -> None:
    closed = trio.Event()

    async def serve(agent: FakeAgent) -> None:
        try:
            while True:
                request = await agent.receive()
                if request.type == MessageType.PingRequest:
                    await agent.reply(request, PONG)
                else:
                    await agent.reply(request, sandbox_v1.RunOutput(stream="stdout", data=b"some"))
        except trio.EndOfChannel:
            closed.set()

    listener.serve_agent(serve)
    async with connect(listener.address) as client:
        async with client.sandbox_run("box", ["sleep", "1000"]) as session:
            assert (await anext(session)).data == b"some"
            assert len(listener.connections) == 2
        await closed.wait()  # which tells the agent to kill what runs
        assert await client.ping() == PONG


async def test_streams_share_the_clients_connection_when_told_to(listener: Listener) -> None:
    end = sandbox_v1.RunOutput(stream="exit", exit_code=4, done=True)

    async def serve(agent: FakeAgent) -> None:
        await agent.serve({MessageType.PingRequest: lambda _: PONG, MessageType.SandboxRunRequest: lambda _: end})

    listener.serve_agent(serve)
    async with connect(listener.address, shared_streams=True) as client:
        async with client.sandbox_run("box", ["x"]) as session:
            assert await session.wait() == 4
        assert await client.ping() == PONG
    assert len(listener.connections) == 1


async def test_a_stream_that_nobody_reads_stops_its_agent_and_not_the_client(listener: Listener) -> None:
    sent = 0

    async def serve(agent: FakeAgent) -> None:
        nonlocal sent
        request = await agent.receive()
        if request.type == MessageType.PingRequest:
            await agent.reply(request, PONG)
            return
        chunk = sandbox_v1.RunOutput(stream="stdout", data=bytes(64 * 1024))
        for _ in range(400):
            await agent.reply(request, chunk)
            sent += 1
        await agent.reply(request, sandbox_v1.RunOutput(stream="exit", done=True))

    listener.serve_agent(serve)
    async with connect(listener.address) as client, client.sandbox_run("box", ["yes"]) as session:
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 100
        assert await client.ping() == PONG
        assert len((await session.collect()).stdout) == 400 * 64 * 1024


async def test_a_hundred_clients_leave_nothing_behind(listener: Listener) -> None:
    async def serve(agent: FakeAgent) -> None:
        await agent.serve({MessageType.PingRequest: lambda _: PONG})

    listener.serve_agent(serve)

    async def ping_once() -> None:
        async with connect(listener.address) as client:
            await client.ping()

    await ping_once()
    await trio.testing.wait_all_tasks_blocked()
    before = open_file_descriptors()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ping_once)
    await trio.testing.wait_all_tasks_blocked()
    assert open_file_descriptors() == before
