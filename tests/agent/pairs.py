"""A transport and whoever is at the other end of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio
from trio.testing import memory_stream_pair

from arcbox_agent.transport import MemoryTransport, SocketTransport

if TYPE_CHECKING:
    import socket

    from arcbox_agent.transport import MemoryStream, Transport
    from arcbox_guest.files import FileRange


class Pair(ABC):
    """A transport and its peer."""

    ours: Transport
    theirs: trio.abc.HalfCloseableStream

    @abstractmethod
    def peer_goes_away(self) -> None:
        """What happens when the peer's process ends."""


class SocketPair(Pair):
    ours: SocketTransport

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.socket, self.their_socket = ours, theirs
        self.ours = SocketTransport(ours)
        self.theirs = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))

    def peer_goes_away(self) -> None:
        self.their_socket.close()


class MemoryPair(Pair):
    their_stream: MemoryStream

    def __init__(self) -> None:
        ours, self.their_stream = memory_stream_pair()
        self.ours, self.theirs = MemoryTransport(ours), self.their_stream

    def peer_goes_away(self) -> None:
        self.their_stream.send_stream.close()
        self.their_stream.receive_stream.close()


async def receive(transport: Transport) -> bytes:
    """The next bytes; empty at the end."""
    while (data := transport.receive_nowait()) is None:
        await transport.readable()
    return data


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        received += await stream.receive_some(count - len(received))
    return bytes(received)


async def sent_file(pair: Pair, part: FileRange) -> tuple[int, bytes]:
    """What sending it returns, and what the peer receives."""
    counts = []

    async def send() -> None:
        counts.append(await pair.ours.send_file(part))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = await receive_exactly(pair.theirs, part.length)
    return counts[0], received
