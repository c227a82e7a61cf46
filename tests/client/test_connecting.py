"""Connecting, over real Unix sockets: plain ones, and those of VMMs that want to hear CONNECT first."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import trio

from arcbox_client import UnixAddress, connect
from arcbox_client.errors import ConnectError, ConnectTimedOutError, HandshakeError, InvalidAddressError
from arcbox_client.testing import FakeAgent
from arcbox_protocol import MessageType, arcbox_v1, encode_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    class Listener(Protocol):
        path: Path
        serve: Callable[[trio.SocketStream], Awaitable[None]] | None
        connections: list[trio.SocketStream]

        @property
        def address(self) -> str: ...
        def serve_agent(self, serve: Callable[[FakeAgent], Awaitable[None]]) -> None: ...


PONG = arcbox_v1.AgentPingResponse(message="pong")


def open_file_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def answer_pings(agent: FakeAgent) -> None:
    await agent.serve({MessageType.PingRequest: lambda _: PONG})


async def test_a_client_talks_to_an_agent_on_a_unix_socket(listener: Listener) -> None:
    listener.serve_agent(answer_pings)
    async with connect(listener.address) as client:
        assert await client.ping() == PONG


async def test_an_address_may_have_been_parsed_already(listener: Listener) -> None:
    listener.serve_agent(answer_pings)
    async with connect(UnixAddress(str(listener.path))) as client:
        assert await client.ping() == PONG


def test_a_text_that_is_no_address_is_refused_at_once() -> None:
    with pytest.raises(InvalidAddressError):
        connect("agent.sock")


async def assert_no_connection(address: str, reason: str) -> None:
    with pytest.raises(ConnectError) as caught:
        async with connect(address):
            pytest.fail("there is nobody")
    assert str(caught.value) == f"cannot connect to {address}: {reason}"
    assert (caught.value.address, caught.value.reason) == (address, reason)


async def test_a_path_that_does_not_exist_is_named(directory: Path) -> None:
    await assert_no_connection(f"unix:{directory}/none", "no such file")


async def test_a_path_below_a_file_is_named(directory: Path) -> None:
    (directory / "file").touch()
    await assert_no_connection(f"unix:{directory}/file/none", "no such file")


async def test_a_socket_that_nobody_listens_at_says_so(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(directory / "agent.sock"))
    await assert_no_connection(f"unix:{directory}/agent.sock", "nobody listens there")


async def test_a_path_that_is_no_stream_socket_says_so(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(directory / "agent.sock"))
        await assert_no_connection(f"unix:{directory}/agent.sock", "this is no stream socket")


async def test_a_path_too_long_for_a_socket_says_so() -> None:
    await assert_no_connection("unix:/" + "x" * 200, "af_unix path too long")


async def test_a_connection_that_fails_leaves_no_file_descriptor_behind(directory: Path) -> None:
    await assert_no_connection(f"unix:{directory}/none", "no such file")
    before = open_file_descriptors()
    for _ in range(3):
        await assert_no_connection(f"unix:{directory}/none", "no such file")
    assert open_file_descriptors() == before


async def test_a_full_backlog_is_waited_for(directory: Path) -> None:
    """The kernel answers EAGAIN then, and gives no way to wait."""
    path = str(directory / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def connect_second() -> None:
                async with connect(f"unix:{path}"):
                    pass

            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            listening.accept()[0].close()


async def test_a_backlog_that_stays_full_times_out(directory: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = str(directory / "agent.sock")
    start = autojump_clock.current_time()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        with pytest.raises(ConnectTimedOutError, match="no answer within 3 s") as caught:
            async with connect(f"unix:{path}", timeout=3):
                pytest.fail("there is no room")
    assert autojump_clock.current_time() - start == pytest.approx(3)
    assert isinstance(caught.value, TimeoutError)


def vmm(
    answer: bytes, *, then: Callable[[FakeAgent], Awaitable[None]] | None = None
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A stand-in for a VMM: takes the CONNECT line, answers, and is the guest from then on."""

    async def serve(stream: trio.SocketStream) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += await stream.receive_some(1)
        assert line == b"CONNECT 1024\n"
        await stream.send_all(answer)
        if then is not None:
            await then(FakeAgent(stream))

    return serve


async def test_a_vmm_is_asked_for_the_port_and_then_the_guest_is_there(listener: Listener) -> None:
    listener.serve = vmm(b"OK 1073741824\n", then=answer_pings)
    async with connect(f"{listener.address}?port=1024") as client:
        assert await client.ping() == PONG


async def test_bytes_that_follow_the_vmms_line_at_once_are_the_guests(listener: Listener) -> None:
    notification = encode_frame(MessageType.PortBindingsRemoved, "", b"\x0a\x01c")
    listener.serve = vmm(b"OK 5\n" + notification, then=answer_pings)
    async with connect(f"{listener.address}?port=1024") as client:
        assert await anext(client.notifications) == arcbox_v1.PortBindingsRemoved(container_id="c")
        assert await client.ping() == PONG


async def test_a_line_that_comes_byte_by_byte_is_one_line(listener: Listener) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for byte in b"OK 5\n":
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep_forever()

    listener.serve = slow
    async with connect(f"{listener.address}?port=1024"):
        pass


async def test_a_vmm_that_closes_says_that_nobody_listens_in_the_guest(listener: Listener) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    listener.serve = close
    with pytest.raises(HandshakeError, match="nobody listens on port 1024 of the guest"):
        async with connect(f"{listener.address}?port=1024"):
            pytest.fail("there is no guest")


@pytest.mark.parametrize(
    "line", [b"ERR\n", b"OK\n", b"OK x\n", b"OKAY 5\n", b"x" * 4096, b"HTTP/1.1 400 Bad Request\r\n"]
)
async def test_any_other_line_of_a_vmm_is_quoted(listener: Listener, line: bytes) -> None:
    listener.serve = vmm(line)
    with pytest.raises(HandshakeError, match=r"CONNECT 1024 was answered b'") as caught:
        async with connect(f"{listener.address}?port=1024"):
            pytest.fail("this is no VMM")
    assert len(str(caught.value)) < 400


async def test_a_vmm_that_does_not_answer_times_out(listener: Listener, autojump_clock: trio.testing.MockClock) -> None:
    async def say_nothing(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    listener.serve = say_nothing
    start = autojump_clock.current_time()
    with pytest.raises(ConnectTimedOutError, match="no answer within 3 s"):
        async with connect(f"{listener.address}?port=1024", timeout=3):
            pytest.fail("there is no guest")
    assert autojump_clock.current_time() - start == pytest.approx(3)


async def test_a_port_of_a_guest_that_does_not_exist_is_a_connect_error() -> None:
    """Whatever this machine's vsock says to it, in whatever words."""
    with pytest.raises(ConnectError, match="cannot connect to vsock:4294967294:1024: "):
        async with connect("vsock:4294967294:1024", timeout=5):
            pytest.fail("there is no such guest")
