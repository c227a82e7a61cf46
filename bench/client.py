"""The measuring end: blocking sockets and bytes that were encoded once, so that what is measured is the server."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import TYPE_CHECKING, NoReturn

from attrs import frozen

from arcbox_protocol import DEFAULT_MAX_FRAME, FrameDecoder, MessageType, arcbox_v1, encode_frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from arcbox_protocol import Frame

TIMEOUT = 30
"""Seconds after which a server that does not answer ends the benchmark."""

PING = encode_frame(
    MessageType.PingRequest,
    "4bf92f3577b34da6",
    arcbox_v1.AgentPingRequest(message="hello").SerializeToString(),
)
"""The frame of a ping. The echo servers get and return the same bytes."""


class UnexpectedReplyError(Exception):
    """A server did not say what it should have."""


def connect(path: Path) -> socket.socket:
    """A connected, blocking Unix stream socket."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        # A timeout of Python's would make it poll before every call; one of the kernel's costs nothing.
        timeval = struct.pack("ll", TIMEOUT, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    except BaseException:
        connection.close()
        raise
    return connection


def receive_frame(connection: socket.socket, max_frame: int = DEFAULT_MAX_FRAME) -> Frame:
    """The one frame that the server sends next."""
    decoder = FrameDecoder(max_frame)
    while not (frames := decoder.feed(_some(connection, 1 << 20))):
        if decoder.fault is not None:
            raise decoder.fault
    (frame,) = frames
    return frame


@frozen
class Exchange:
    """A request, and the very bytes that answer it."""

    request: bytes
    reply: bytes

    @classmethod
    def learn(cls, connection: socket.socket, request: bytes) -> Exchange:
        """What this server says to a request: one short message, always the same."""
        connection.sendall(request)
        return cls(request, _some(connection, 4096))

    def one_by_one(self, connection: socket.socket, count: int) -> None:
        """`count` round trips on one connection, each after the one before."""
        self.in_waves([connection], count)

    def in_waves(self, connections: Sequence[socket.socket], count: int) -> None:
        """`count` round trips on each connection, which all have one request under way at a time."""
        request, reply = self.request, self.reply
        size = len(reply)
        sends = [connection.send for connection in connections]
        receives = [connection.recv for connection in connections]
        for _ in range(count):
            for send in sends:
                send(request)
            for receive in receives:
                answer = receive(size)
                while answer and len(answer) < size:
                    answer += receive(size - len(answer))
                if answer != reply:
                    raise UnexpectedReplyError(f"{request!r} was answered {answer!r}, not {reply!r}")

    def latencies(self, connections: Sequence[socket.socket], count: int) -> list[float]:
        """The seconds that each of `count` round trips took, with one under way on every connection all the time."""
        request, size = self.request, len(self.reply)
        by_number = {connection.fileno(): connection for connection in connections}
        taken: list[float] = []
        with select.epoll() as ready:
            sent: dict[int, float] = {}
            for number, connection in by_number.items():
                ready.register(number, select.EPOLLIN)
                sent[number] = time.perf_counter()
                connection.send(request)
            while sent:
                for number, _ in ready.poll():
                    connection = by_number[number]
                    if len(connection.recv(size)) != size:
                        raise UnexpectedReplyError("a reply came in pieces")
                    now = time.perf_counter()
                    taken.append(now - sent.pop(number))
                    if len(taken) + len(sent) < count:
                        sent[number] = now
                        connection.send(request)
        return taken

    def pipelined(self, connection: socket.socket, window: int, count: int) -> None:
        """`count` round trips on one connection with `window` requests under way: each reply lets one more go."""
        request, size = self.request, len(self.reply)
        receive, send = connection.recv, connection.sendall
        sent = min(window, count)
        send(request * sent)
        received, answered = 0, 0
        while answered < count:
            received += len(receive(65_536) or _gone())
            done = received // size
            more = min(done - answered, count - sent)
            answered = done
            if more:
                send(request * more)
                sent += more


def transfer(connection: socket.socket, request: bytes, size: int, buffer: bytearray) -> None:
    """Ask, and read an answer of `size` bytes into a buffer that is used again and again."""
    connection.sendall(request)
    while size > 0:
        received = connection.recv_into(buffer, min(size, len(buffer)))
        size -= received or _gone()


def _some(connection: socket.socket, size: int) -> bytes:
    return connection.recv(size) or _gone()


def _gone() -> NoReturn:
    raise UnexpectedReplyError("the server closed the connection")
