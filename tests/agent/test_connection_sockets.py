"""One connection over real sockets: what memory streams do not show, such as full buffers, half-closes and resets."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.connection import Connection
from arcbox_agent.settings import Limits
from arcbox_agent.testing import Peer
from arcbox_agent.transport import SocketTransport
from arcbox_guest.errors import NotFoundError
from arcbox_guest.files import FileRange
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Acknowledgement, Context, FileReply
from arcbox_protocol import ErrorReply, Frame, MessageType, arcbox_v1, encode_frame, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from tests.agent.conftest import Stage

T = MessageType


@asynccontextmanager
async def connected(
    stage: Stage, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> AsyncIterator[Peer[trio.SocketStream]]:
    ours, theirs = pair()
    context = Context(guest=fake_guest(), version="1.2.3")
    connection = Connection(SocketTransport(ours), stage.registry, context, Limits(), "test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream:
            yield Peer(stream)
    assert ours.fileno() == -1


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Connected over loopback: like vsock, and unlike a Unix socket, it has resets and no way to tell a half-close."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


def inspect(name: str) -> sandbox_v1.InspectSandboxRequest:
    return sandbox_v1.InspectSandboxRequest(id=name)


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
async def test_pings_are_answered(stage: Stage, pair: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    async with connected(stage, pair) as peer:
        for i in range(100):
            await peer.send(T.PingRequest, trace_id=str(i))
            assert (await peer.receive()).trace_id == str(i)


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
async def test_a_thousand_pings_at_once_are_answered(
    stage: Stage, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    async with connected(stage, pair) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, b"".join(encode_frame(T.PingRequest, str(i)) for i in range(1000)))
        assert [(await peer.receive()).trace_id for _ in range(1000)] == [str(i) for i in range(1000)]


async def test_what_comes_behind_a_fault_is_not_looked_at(stage: Stage) -> None:
    async with connected(stage, socket.socketpair) as peer:
        await peer.stream.send_all(encode_frame(T.PingRequest, "a") + bytes(100_000))
        assert (await peer.receive()).trace_id == "a"
        error = await peer.receive()
        assert (error.type, ErrorReply.decode(error.payload).code) == (T.Error, 400)
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()


@pytest.mark.parametrize(
    ("then", "code"),
    [
        pytest.param(b"\xff\xff\xff\xff", 413, id="the beginning of a frame that is too large"),
        pytest.param(b"\0\0\0\1", 400, id="the beginning of a frame that is none"),
        pytest.param(b"\0\0", 504, id="the beginning of a frame that never ends"),
    ],
)
async def test_what_comes_while_a_request_is_answered_is_judged_as_any_other(
    then: bytes, code: int, stage: Stage, autojump_clock: MockClock
) -> None:
    async with connected(stage, socket.socketpair) as peer:
        stage.meanwhile = partial(os.write, peer.stream.socket.fileno(), then)
        for trace_id, request in (("a", T.PingRequest), ("b", T.RuntimeStatusRequest)):  # by the second it is at rest
            await wait_all_tasks_blocked()
            await peer.send(request, trace_id=trace_id)
            assert (await peer.receive()).trace_id == trace_id
        assert ErrorReply.decode((await peer.receive()).payload).code == code
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_peer_that_is_gone_cancels_what_runs(
    stage: Stage, pair: Callable[[], tuple[socket.socket, socket.socket]], how: str
) -> None:
    async with connected(stage, pair) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await peer.send(T.SandboxStopRequest, sandbox_v1.StopSandboxRequest(id="slow"), trace_id="slow")
        await peer.send(T.SandboxInspectRequest, inspect("in turn"))
        await wait_all_tasks_blocked()
        if how == "reset":
            if peer.stream.socket.family == socket.AF_INET:
                peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                await peer.send(T.PingRequest)
    assert {"in turn was cancelled", "slow was cancelled", "stream ended"} < set(stage.log)


async def test_a_peer_that_is_gone_is_noticed_while_its_input_holds_up_the_connection(stage: Stage) -> None:
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="deaf"), trace_id="a")
        flood = b"".join(encode_frame(T.SandboxExecInput, "a", bytes(10_000)) for _ in range(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.send_all, flood)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks, "the agent took whatever came"
            nursery.cancel_scope.cancel()
        assert "stream ended" not in stage.log
    assert "stream ended" in stage.log


async def test_a_peer_that_sends_no_more_still_gets_its_replies(stage: Stage) -> None:
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxStopRequest, sandbox_v1.StopSandboxRequest(id="slow"), trace_id="slow")
        await peer.send(T.SandboxInspectRequest, inspect("in turn"), trace_id="in turn")
        await peer.send(T.PingRequest, trace_id="ping")
        await peer.stream.send_eof()
        await wait_all_tasks_blocked()
        stage.gate("in turn").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["in turn", "ping"]
        stage.gate("slow").set()
        assert (await peer.receive()).trace_id == "slow"
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()


async def test_a_peer_that_sends_no_more_and_then_goes_away_cancels_what_runs(stage: Stage) -> None:
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxInspectRequest, inspect("in turn"))
        await peer.stream.send_eof()
        await wait_all_tasks_blocked()
        assert stage.log == ["in turn began"]
    assert stage.log == ["in turn began", "in turn was cancelled"]


async def test_a_peer_that_does_not_read_slows_its_stream_down(stage: Stage) -> None:
    sent = 0

    async def talk() -> None:
        nonlocal sent
        while True:
            await stage.streams[""].send(sandbox_v1.SandboxEvent(action="x" * 60_000))
            sent += 1

    async with connected(stage, socket.socketpair) as peer, trio.open_nursery() as nursery:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await wait_all_tasks_blocked()
        nursery.start_soon(talk)
        await wait_all_tasks_blocked()
        assert sent < 100
        for _ in range(200):
            assert len((await peer.receive()).payload) > 60_000
        nursery.cancel_scope.cancel()


async def test_a_peer_that_leaves_in_the_middle_of_a_stream_is_no_error_of_the_agent(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="x"), trace_id="a")
        said_back = b"".join(encode_frame(T.SandboxExecInput, "a", bytes(60_000)) for _ in range(100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.send_all, said_back)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records if record.levelname in {"ERROR", "WARNING"}] == []


async def test_streams_that_are_refused_after_the_peer_left_are_no_error_of_the_agent(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.error = NotFoundError("no such sandbox")
    async with connected(stage, socket.socketpair) as peer:
        for trace_id in "abc":
            await peer.send(T.SandboxEventsRequest, trace_id=trace_id)
        await wait_all_tasks_blocked()
        stage.gate("stream").set()
    assert [record.message for record in caplog.records if record.levelname in {"ERROR", "WARNING"}] == []


async def test_frames_stay_whole_when_several_streams_fill_the_socket(stage: Stage) -> None:
    async def talk(stream: int) -> None:
        for i in range(200):
            data = bytes([stream]) * (1 + i * 977 % 70_000)
            await stage.streams[str(stream)].send_payload(data[:1000], data[1000:])

    async with connected(stage, socket.socketpair) as peer, trio.open_nursery() as nursery:
        for stream in range(4):
            request = sandbox_v1.SandboxEventsRequest(id=str(stream))
            await peer.send(T.SandboxEventsRequest, request, trace_id=str(stream))
        await wait_all_tasks_blocked()
        for stream in range(4):
            nursery.start_soon(talk, stream)
        seen: dict[str, list[int]] = {str(stream): [] for stream in range(4)}
        for _ in range(800):
            frame = await peer.receive()
            assert set(frame.payload) == {int(frame.trace_id)}
            seen[frame.trace_id].append(len(frame.payload))
    assert all(sizes == [1 + i * 977 % 70_000 for i in range(200)] for sizes in seen.values())


async def test_a_write_that_is_cut_off_half_way_ends_the_connection(stage: Stage) -> None:
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.streams[""].send_payload, bytes(16 * 1024 * 1024))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError, match="cut off"):
            await stage.streams[""].send(sandbox_v1.SandboxEvent())
        with pytest.raises(EOFError, match="in the middle of a frame"):
            await peer.receive()


async def test_what_an_acknowledgement_promises_begins_once_it_is_on_the_wire(stage: Stage) -> None:
    def begin() -> None:
        with socket.socket(fileno=os.dup(peer.stream.socket.fileno())) as peers_end:
            sent.append(peers_end.recv(1000, socket.MSG_PEEK | socket.MSG_DONTWAIT))

    sent: list[bytes] = []
    message = arcbox_v1.ShutdownResponse(accepted=True)
    stage.reply = lambda: Acknowledgement(message, then=begin)
    stage.gate("x").set()
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxInspectRequest, inspect("x"))
        await wait_all_tasks_blocked()
        assert sent == [encode_frame(T.SandboxInspectResponse, "", message.SerializeToString())]


async def test_what_an_acknowledgement_promises_never_begins_when_it_can_not_be_sent(stage: Stage) -> None:
    stage.reply = lambda: Acknowledgement(arcbox_v1.ShutdownResponse(), then=lambda: stage.log.append("begun"))
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxInspectRequest, inspect("x"))
        await wait_all_tasks_blocked()
        stage.gate("x").set()
        peer.stream.socket.close()
    assert "begun" not in stage.log


def file_reply(path: Path, *, tail: bytes = b"") -> FileReply:
    """A reply with all of a file in it."""
    file = FileRange(os.open(path, os.O_RDONLY), 0, path.stat().st_size)
    return FileReply(head=b"head", file=file, tail=lambda _sent: tail, tail_size=len(tail))


async def test_a_file_is_sent_whole_with_what_comes_before_and_after_and_closed(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    reply = file_reply(path, tail=b"tail")
    stage.reply = lambda: reply
    stage.gate("x").set()
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxInspectRequest, inspect("x"), trace_id="t")
        frame = await peer.receive()
        assert frame == Frame(T.SandboxInspectResponse, "t", b"head" + content + b"tail")
        await peer.send(T.PingRequest)
        assert (await peer.receive()).type == T.PingResponse
        assert reply.file.descriptor == -1


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
async def test_a_file_whose_peer_goes_away_is_closed(
    stage: Stage, tmp_path: Path, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(30_000_000))
    reply = file_reply(path)
    stage.reply = lambda: reply
    stage.gate("x").set()
    async with connected(stage, pair) as peer:
        await peer.send(T.SandboxInspectRequest, inspect("x"), trace_id="t")
        assert await peer.stream.receive_some(1)
        await wait_all_tasks_blocked()
        assert reply.file.descriptor >= 0
    assert reply.file.descriptor == -1


async def test_a_file_whose_turn_never_came_is_closed(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"never sent")
    reply = file_reply(path)
    stage.reply = lambda: reply
    async with connected(stage, socket.socketpair) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await peer.send(T.SandboxInspectRequest, inspect("x"))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.streams[""].send_payload, bytes(16 * 1024 * 1024))
            await wait_all_tasks_blocked()
            stage.gate("x").set()
            await wait_all_tasks_blocked()
            assert reply.file.descriptor >= 0
            nursery.cancel_scope.cancel()
    assert reply.file.descriptor == -1


async def test_a_file_that_is_truncated_while_it_is_sent_leaves_the_frame_whole(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "file"
    size = 32 * 1024 * 1024
    path.write_bytes(b"x" * size)
    async with connected(stage, socket.socketpair) as peer:
        request = arcbox_v1.MmapReadFileRequest(path=str(path), offset=0, length=size)
        await peer.send(T.MmapReadFileRequest, request, trace_id="t")
        begun = await peer.stream.receive_some(4)
        os.truncate(path, 1024 * 1024)
        length = int.from_bytes(begun)
        payload = bytearray()
        while len(payload) < length:
            payload += await peer.stream.receive_some(1024 * 1024)
        reply = arcbox_v1.MmapReadFileResponse.FromString(bytes(payload[4 + 2 + 1 :]))
        assert len(reply.data) == size
        assert reply.bytes_read == 1024 * 1024
        assert reply.data[: reply.bytes_read] == b"x" * reply.bytes_read
        later = size // 2  # more than was on its way when the file was cut short
        assert reply.data[later:] == bytes(size - later)
        await peer.send(T.PingRequest)
        assert (await peer.receive()).type == T.PingResponse
