"""What a socket has to cope with as a transport: slow peers, files that are cut off, peers that are gone."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import sys
import tempfile
import termios
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.transport import SEND_BUFFER, SocketTransport
from arcbox_guest.files import FileRange
from tests.agent.pairs import SocketPair, receive, receive_exactly, sent_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from _typeshed import ReadableBuffer
    from trio.testing import MockClock

MIB = 1024 * 1024


@pytest.fixture
def sockets() -> Iterator[SocketPair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SocketPair(ours, theirs)


async def _read_to_the_end(transport: SocketTransport) -> None:
    while await receive(transport):
        pass


class Waiting:
    """A call that runs in a task; says whether it is over."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[object]]) -> None:
        self._call = call
        self.over = False
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self._call()
        self.over = True


# Sending


def take(peer: socket.socket, count: int) -> bytes:
    """So many bytes of those that wait for the peer."""
    return peer.recv(count, socket.MSG_WAITALL)


def test_parts_are_sent_one_after_the_other(sockets: SocketPair) -> None:
    assert sockets.ours.send_nowait([b"one"]) == 3
    assert sockets.ours.send_nowait([b"two", memoryview(b"three"), bytearray(b"four")]) == 12
    assert take(sockets.their_socket, 15) == b"onetwothreefour"


def test_what_does_not_fit_without_waiting_is_not_sent(sockets: SocketPair) -> None:
    sent = os.urandom(4 * MIB)
    fits = sockets.ours.send_nowait([sent[:MIB], sent[MIB:]])
    assert 0 < fits < len(sent)
    while count := sockets.ours.send_nowait([sent[fits:]]):
        fits += count
    assert take(sockets.their_socket, fits) == sent[:fits]


async def test_a_peer_that_does_not_read_holds_the_sender_up(sockets: SocketPair) -> None:
    sent = os.urandom(8 * MIB)
    async with trio.open_nursery() as nursery:
        sending = Waiting(nursery, lambda: sockets.ours.send(sent))
        await wait_all_tasks_blocked()
        assert not sending.over
        assert waiting_for(sockets.their_socket) <= 2 * SEND_BUFFER  # the kernel doubles what it is asked for
        received = await receive_exactly(sockets.theirs, len(sent))
    assert received == sent


def waiting_for(peer: socket.socket) -> int:
    """How many bytes were sent that the peer has not received."""
    count = bytearray(4)
    fcntl.ioctl(peer, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


async def test_a_sender_that_waits_can_be_cancelled(sockets: SocketPair) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.ours.send, bytes(8 * MIB))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_long_send_to_a_fast_reader_lets_others_have_their_turn(sockets: SocketPair) -> None:
    turns = 0

    class FastReader(socket.socket):
        """Reads whatever is sent, at once."""

        def send(self, data: ReadableBuffer, _flags: int = 0, /) -> int:
            return min(1024, len(memoryview(data)))

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with FastReader(fileno=os.dup(sockets.socket.fileno())) as fast:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            await SocketTransport(fast).send(bytes(MIB))
            nursery.cancel_scope.cancel()
    assert turns >= 1024 // 32


async def test_abort_wakes_a_sender_that_waits(sockets: SocketPair) -> None:
    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await sockets.ours.send(bytes(8 * MIB))

    async with trio.open_nursery() as nursery:
        sending = Waiting(nursery, send)
        await wait_all_tasks_blocked()
        assert not sending.over
        sockets.ours.abort()


async def test_a_peer_that_goes_away_wakes_a_sender_that_waits(sockets: SocketPair) -> None:
    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await sockets.ours.send(bytes(8 * MIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        sockets.peer_goes_away()


async def test_what_is_cut_off_from_a_file_while_the_sender_waits_is_sent_as_zeros(sockets: SocketPair) -> None:
    data = os.urandom(8 * MIB)
    counts = []
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        part = FileRange(os.dup(file.fileno()), offset=0, length=len(data))

    async def send() -> None:
        counts.append(await sockets.ours.send_file(part))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert not counts
        os.truncate(part.descriptor, 0)
        received = await receive_exactly(sockets.theirs, len(data))
    part.close()
    (count,) = counts
    assert 0 < count < len(data)
    assert received == data[:count] + bytes(len(data) - count)


async def test_for_a_file_that_can_not_be_read_zeros_are_sent(sockets: SocketPair) -> None:
    """A directory stands in for a file on a broken disk."""
    unreadable = FileRange(os.open("/proc", os.O_RDONLY), offset=0, length=100_000)
    try:
        assert await sent_file(sockets, unreadable) == (0, bytes(100_000))
    finally:
        unreadable.close()


async def test_the_end_of_a_peer_that_left_bytes_unread_is_an_error(sockets: SocketPair) -> None:
    await sockets.ours.send(b"never read")
    sockets.peer_goes_away()
    with pytest.raises(trio.BrokenResourceError, match=os.strerror(errno.ECONNRESET)):
        await receive(sockets.ours)


def test_sending_without_waiting_to_a_peer_that_is_gone_is_an_error(sockets: SocketPair) -> None:
    sockets.peer_goes_away()
    for parts in ([b"one"], [b"one", b"two"]):
        with pytest.raises(trio.BrokenResourceError):
            sockets.ours.send_nowait(parts)


# Hanging up


async def test_a_peer_that_only_ends_its_sending_has_not_hung_up(sockets: SocketPair) -> None:
    async with trio.open_nursery() as nursery:
        hung_up = Waiting(nursery, sockets.ours.wait_hangup)
        await sockets.theirs.send_eof()
        await wait_all_tasks_blocked()
        assert not hung_up.over
        sockets.peer_goes_away()


async def test_bytes_that_nobody_received_do_not_hide_that_the_peer_is_gone(sockets: SocketPair) -> None:
    await sockets.theirs.send_all(bytes(1000))
    async with trio.open_nursery() as nursery:
        hung_up = Waiting(nursery, sockets.ours.wait_hangup)
        await wait_all_tasks_blocked()
        assert not hung_up.over
        sockets.peer_goes_away()
    assert await receive(sockets.ours) == bytes(1000)


async def test_a_peer_that_left_bytes_unread_has_hung_up(sockets: SocketPair) -> None:
    await sockets.ours.send(b"never read")
    sockets.peer_goes_away()
    await sockets.ours.wait_hangup()


async def test_who_is_waiting_for_bytes_does_not_keep_another_from_watching_for_the_end(sockets: SocketPair) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_to_the_end, sockets.ours)
        hung_up = [Waiting(nursery, sockets.ours.wait_hangup) for _ in range(3)]
        await sockets.theirs.send_all(b"still here")
        await wait_all_tasks_blocked()
        assert not any(waiting.over for waiting in hung_up)
        sockets.peer_goes_away()


async def test_watching_for_the_end_leaves_no_descriptor_behind(sockets: SocketPair) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names are enough
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(sockets.ours.wait_hangup)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208  as above; garbage may have been collected


async def test_without_a_spare_descriptor_the_end_is_still_noticed(
    sockets: SocketPair, autojump_clock: MockClock
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        async with trio.open_nursery() as nursery:
            hung_up = Waiting(nursery, sockets.ours.wait_hangup)
            await trio.sleep(10)
            assert not hung_up.over
            sockets.peer_goes_away()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_where_half_close_may_not_cross_the_end_of_sending_is_the_end() -> None:
    """TCP over the loopback stands in for AF_VSOCK, which has no loopback without its module."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours = listening.accept()[0]
    with ours, theirs:
        pair = SocketPair(ours, theirs)
        async with trio.open_nursery() as nursery:
            hung_up = Waiting(nursery, pair.ours.wait_hangup)
            await pair.theirs.send_all(b"not yet")
            await wait_all_tasks_blocked()
            assert not hung_up.over
            await pair.theirs.send_eof()


async def test_our_own_end_of_sending_does_not_look_like_the_peer_s_end(sockets: SocketPair) -> None:
    await sockets.ours.send_eof()
    async with trio.open_nursery() as nursery:
        hung_up = Waiting(nursery, sockets.ours.wait_hangup)
        await wait_all_tasks_blocked()
        assert not hung_up.over
        sockets.peer_goes_away()


async def test_an_interrupt_ends_the_wait_for_something_to_receive(sockets: SocketPair) -> None:
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sockets.ours.readable()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        sockets.ours.interrupt()
    await sockets.theirs.send_all(b"more")
    assert await receive(sockets.ours) == b"more"


async def test_an_interrupt_takes_nothing_from_what_is_being_sent(sockets: SocketPair) -> None:
    sent = os.urandom(4 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.ours.send, sent)
        await wait_all_tasks_blocked()
        sockets.ours.interrupt()
        assert await receive_exactly(sockets.theirs, len(sent)) == sent
