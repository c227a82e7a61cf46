"""Byte streams to a peer: the rules that both kinds share. `test_socket_transport.py` has the socket's own."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.transport import RECEIVE_SIZE, Transport
from arcbox_guest.files import FileRange
from tests.agent.pairs import MemoryPair, Pair, SocketPair, receive, sent_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


MIB = 1024 * 1024


@pytest.fixture
def sockets() -> Iterator[SocketPair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SocketPair(ours, theirs)


@pytest.fixture(params=["socket", "memory"])
def pair(request: pytest.FixtureRequest) -> Pair:
    chosen = request.getfixturevalue("sockets") if request.param == "socket" else MemoryPair()
    assert isinstance(chosen, Pair)
    return chosen


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


class Waiting:
    """A call that runs in a task; says whether it is over."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[object]]) -> None:
        self._call = call
        self.over = False
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self._call()
        self.over = True


# What every transport does


async def test_what_the_peer_sends_is_received(pair: Pair) -> None:
    assert pair.ours.receive_nowait() is None
    await pair.theirs.send_all(b"hello")
    assert await receive(pair.ours) == b"hello"
    assert pair.ours.receive_nowait() is None


async def test_waiting_for_bytes_ends_when_they_come(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        waiting = Waiting(nursery, pair.ours.readable)
        await wait_all_tasks_blocked()
        assert not waiting.over
        await pair.theirs.send_all(b"!")
    assert await receive(pair.ours) == b"!"


async def test_one_receive_brings_at_most_so_many_bytes_and_none_is_lost(pair: Pair) -> None:
    sent = os.urandom(3 * RECEIVE_SIZE + 1)
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.theirs.send_all, sent)
        while len(received) < len(sent):
            part = await receive(pair.ours)
            assert 0 < len(part) <= RECEIVE_SIZE
            received += part
    assert received == sent


async def test_the_end_of_the_stream_is_empty_again_and_again(pair: Pair) -> None:
    await pair.theirs.send_all(b"last words")
    await pair.theirs.send_eof()
    assert await receive(pair.ours) == b"last words"
    assert [await receive(pair.ours) for _ in range(3)] == [b"", b"", b""]


async def test_after_the_peer_s_end_of_sending_it_can_still_be_answered(pair: Pair) -> None:
    await pair.theirs.send_eof()
    assert await receive(pair.ours) == b""
    await pair.ours.send(b"answer")
    assert await pair.theirs.receive_some() == b"answer"


async def test_bytes_of_every_kind_are_sent(pair: Pair) -> None:
    for data in (b"one", bytearray(b"two"), memoryview(b"-three-")[1:-1], b""):
        await pair.ours.send(data)
    pair.ours.close()
    assert await read_all(pair.theirs) == b"onetwothree"


@pytest.fixture
def part() -> Iterator[FileRange]:
    """1 MB of a file, not from its beginning nor to its end."""
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(1_500_000))
        file.flush()
        part = FileRange(os.dup(file.fileno()), offset=12_345, length=1_000_000)
    yield part
    part.close()


def content(part: FileRange) -> bytes:
    return os.pread(part.descriptor, part.length, part.offset)


async def test_a_part_of_a_file_is_sent(pair: Pair, part: FileRange) -> None:
    assert await sent_file(pair, part) == (part.length, content(part))


@pytest.mark.parametrize("left", [0, 1, 4096, 500_000])
async def test_for_what_is_cut_off_from_a_file_zeros_are_sent(left: int, pair: Pair, part: FileRange) -> None:
    there = content(part)[:left]
    os.truncate(part.descriptor, part.offset + left)
    assert await sent_file(pair, part) == (left, there + bytes(part.length - left))


async def test_to_send_a_file_to_a_peer_that_is_gone_is_an_error(pair: Pair, part: FileRange) -> None:
    pair.peer_goes_away()
    with pytest.raises(trio.BrokenResourceError):
        await pair.ours.send_file(part)


async def test_our_end_of_sending_reaches_the_peer_which_may_go_on(pair: Pair) -> None:
    await pair.ours.send(b"bye")
    await pair.ours.send_eof()
    assert await read_all(pair.theirs) == b"bye"
    await pair.theirs.send_all(b"bye yourself")
    assert await receive(pair.ours) == b"bye yourself"


async def test_to_send_to_a_peer_that_is_gone_is_an_error(pair: Pair) -> None:
    pair.peer_goes_away()
    with pytest.raises(trio.BrokenResourceError):
        await pair.ours.send(b"anybody there?")


async def test_a_peer_that_goes_away_hangs_up(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_to_the_end, pair.ours)
        hung_up = Waiting(nursery, pair.ours.wait_hangup)
        await wait_all_tasks_blocked()
        assert not hung_up.over
        pair.peer_goes_away()


async def _read_to_the_end(transport: Transport) -> None:
    while await receive(transport):
        pass


async def test_abort_ends_the_stream_for_the_peer(pair: Pair) -> None:
    pair.ours.abort()
    assert await read_all(pair.theirs) == b""


async def test_abort_wakes_who_waits_for_bytes(pair: Pair) -> None:
    received = []

    async def wait_for_bytes() -> None:
        received.append(await receive(pair.ours))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_bytes)
        await wait_all_tasks_blocked()
        pair.ours.abort()
    assert received == [b""]


async def test_after_abort_nothing_can_be_sent(pair: Pair) -> None:
    pair.ours.abort()
    with pytest.raises(trio.BrokenResourceError):
        await pair.ours.send(b"too late")


def test_to_abort_what_has_ended_does_no_harm(pair: Pair) -> None:
    pair.peer_goes_away()
    pair.ours.abort()
    pair.ours.abort()
    pair.ours.close()


async def test_closing_ends_the_stream_for_the_peer(pair: Pair) -> None:
    await pair.ours.send(b"bye")
    pair.ours.close()
    assert await read_all(pair.theirs) == b"bye"


async def test_waiting_can_be_cancelled_and_loses_nothing(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.ours.readable)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await pair.theirs.send_all(b"later")
    assert await receive(pair.ours) == b"later"
