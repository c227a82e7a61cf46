"""The relays to the Docker and Kubernetes APIs, with real sockets."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.addresses import TcpAddress, UnixAddress, VsockAddress, parse_target
from arcbox_agent.proxies import Proxy, Target, build_proxies
from arcbox_agent.settings import DockerProxy, Runtime, Settings
from arcbox_agent.settings import Proxy as ProxySettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[trio.SocketStream], Awaitable[None]]
    Connect = Callable[[], Awaitable[trio.SocketStream]]

MIB = 1024 * 1024
BLOCK = os.urandom(MIB)
BLOCKS = 64


@asynccontextmanager
async def proxied(handler: Handler, directory: Path) -> AsyncIterator[tuple[Proxy, Connect]]:
    """A proxy before a server, and a way to connect to it."""
    target, near = str(directory / "target.sock"), str(directory / "near.sock")
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(target)
    listening.listen(1024)
    proxy = Proxy("test", [UnixAddress(near)], Target.at(UnixAddress(target)), allowed_cids=())

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, serve, [trio.SocketListener(listening)]))
        nursery.start_soon(proxy.run)
        await wait_all_tasks_blocked()

        async def connect() -> trio.SocketStream:
            return await trio.open_unix_socket(near)

        yield proxy, connect
        nursery.cancel_scope.cancel()


async def echo_after_the_end(stream: trio.SocketStream) -> None:
    """Read to the end of the stream, and only then answer."""
    received = b"".join([data async for data in stream])
    await stream.send_all(b"all of " + received)
    await stream.send_eof()


async def send_for_ever(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(BLOCK)


async def receive_all(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def test_the_end_of_the_request_gets_there_before_the_answer_comes_back(directory: Path) -> None:
    async with proxied(echo_after_the_end, directory) as (_proxy, connect), await connect() as client:
        await client.send_all(b"stdin")
        await client.send_eof()
        assert await receive_all(client) == b"all of stdin"


async def test_a_server_that_has_said_all_still_hears_its_client(directory: Path) -> None:
    heard: list[bytes] = []

    async def say_and_listen(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")
        await stream.send_eof()
        heard.append(await receive_all(stream))
        done.set()

    done = trio.Event()
    async with proxied(say_and_listen, directory) as (_proxy, connect), await connect() as client:
        assert await receive_all(client) == b"bye"
        await client.send_all(b"and more")
        await client.send_eof()
        await done.wait()
    assert heard == [b"and more"]


@pytest.mark.parametrize("upwards", [True, False])
async def test_not_one_byte_of_much_is_lost_or_changed(*, upwards: bool, directory: Path) -> None:
    async def send(stream: trio.SocketStream) -> None:
        for _ in range(BLOCKS):
            await stream.send_all(BLOCK)
        await stream.send_eof()

    async def receive(stream: trio.SocketStream) -> None:
        async for data in stream:
            received.update(data)
        done.set()

    received, expected, done = hashlib.sha256(), hashlib.sha256(), trio.Event()
    for _ in range(BLOCKS):
        expected.update(BLOCK)
    server, ours = (receive, send) if upwards else (send, receive)
    async with proxied(server, directory) as (_proxy, connect), await connect() as client:
        await ours(client)
        await done.wait()
    assert received.digest() == expected.digest()


async def test_a_reader_that_stops_does_not_hold_up_the_others(directory: Path) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        if await stream.receive_some(4) == b"much":
            await send_for_ever(stream)
        else:
            await stream.send_all(b"pong")

    async with proxied(answer, directory) as (_proxy, connect), await connect() as slow:
        await slow.send_all(b"much")
        async with await connect() as quick:
            await quick.send_all(b"ping")
            assert await receive_all(quick) == b"pong"


async def test_a_client_that_goes_away_takes_its_connection_along(directory: Path) -> None:
    async def send(stream: trio.SocketStream) -> None:
        await send_for_ever(stream)
        gone.set()

    gone = trio.Event()
    async with proxied(send, directory) as (proxy, connect):
        async with await connect() as client:
            await client.receive_some(MIB)
            assert proxy.open == 1
        await gone.wait()
        await wait_all_tasks_blocked()
        assert proxy.open == 0


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_two_hundred_at_once_are_relayed_and_leave_nothing(directory: Path) -> None:
    async def converse(number: int) -> None:
        async with await connect() as client:
            await client.send_all(b"%d" % number)
            await client.send_eof()
            assert await receive_all(client) == b"all of %d" % number

    async with proxied(echo_after_the_end, directory) as (proxy, connect):
        descriptors = open_descriptors()
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(converse, number)
        await wait_all_tasks_blocked()
        assert proxy.open == 0
        assert open_descriptors() == descriptors


async def test_where_nobody_listens_the_connection_is_closed(directory: Path) -> None:
    async with proxied(echo_after_the_end, directory) as (_proxy, connect):
        (directory / "target.sock").unlink()
        async with await connect() as client:
            assert await receive_all(client) == b""


async def test_a_full_backlog_is_waited_for(directory: Path) -> None:
    path = str(directory / "full.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)  # a backlog of 0 has room for one
            connected = trio.Event()

            async def connect() -> None:
                (await Target.at(UnixAddress(path)).connect()).close()
                connected.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                await wait_all_tasks_blocked()
                assert not connected.is_set()
                listening.accept()[0].close()


async def test_tcp_is_connected_to_without_names(nursery: trio.Nursery) -> None:
    listening = trio.socket.socket()
    await listening.bind(("127.0.0.1", 0))
    listening.listen()
    address = parse_target(f"tcp:127.0.0.1:{listening.getsockname()[1]}")
    with listening, await Target.at(address).connect() as connected:
        accepted, _ = await listening.accept()
        with accepted:
            assert accepted.getpeername() == connected.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await Target.at(address).connect()


@pytest.mark.parametrize("text", ["tcp:localhost:1", "tcp:127.0.0.1:0", "tcp:127.0.0.1", "unix:", "vsock:1", "/x"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither|does not appear"):
        parse_target(text)


def test_the_addresses_are_those_of_the_settings() -> None:
    assert parse_target("tcp:[::1]:6443") == TcpAddress("::1", 6443)
    default = {proxy.name: proxy for proxy in build_proxies(Settings())}
    assert default["docker"]._addresses == [VsockAddress(2375)]
    assert default["docker"]._target == Target(socket.AF_UNIX, "/run/docker.sock")
    assert default["kubernetes"]._addresses == [VsockAddress(16443)]
    assert default["kubernetes"]._target == Target(socket.AF_INET, ("127.0.0.1", 6443))


def test_an_agent_without_vsock_has_only_the_proxies_that_were_asked_for() -> None:
    settings = Settings(
        listen=("unix:/run/agent.sock",),
        runtime=Runtime(docker_socket="/run/other.sock"),
        proxy=ProxySettings(docker=DockerProxy(listen=("auto", "unix:/run/api.sock"))),
    )
    (docker,) = build_proxies(settings)
    assert docker._addresses == [UnixAddress("/run/api.sock")]
    assert docker._target == Target(socket.AF_UNIX, "/run/other.sock")


def test_the_environment_says_where_the_docker_api_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCBOX_GUEST_DOCKER_VSOCK_PORT", "4711")
    assert build_proxies(Settings())[0]._addresses == [VsockAddress(4711)]
