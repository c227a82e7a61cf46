"""Whether a daemon answers on its Unix socket, as it is now and not as it once was."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_DEADLINE: Final = 2.0
"""Seconds in which a daemon must answer."""

_INTERVAL: Final = 2.0
"""Seconds between two probes of a daemon that answers."""

_DOCKER_PING: Final = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""Of a client, with empty SETTINGS: RFC 9113, section 3.4."""

_FRAME_HEADER: Final = 9
_SETTINGS: Final = 4


class Liveness(enum.IntEnum):
    """What a daemon's socket shows, from worse to better."""

    ABSENT = 0
    """Nobody listens."""

    HUNG = 1
    """Connections are accepted, and it has answered before, but does not now."""

    ACCEPTS = 2
    """Connections are accepted; no answer so far."""

    ANSWERS = 3


async def ask_docker(connected: trio.SocketStream) -> bool:
    """Whether `GET /_ping` is answered with 200. Raises trio.BrokenResourceError."""
    await connected.send_all(_DOCKER_PING)
    status_line = await _receive(connected, len(b"HTTP/1.1 200"))
    return status_line.endswith(b" 200")


async def ask_containerd(connected: trio.SocketStream) -> bool:
    """Whether its gRPC server greets: an HTTP/2 server sends SETTINGS first. Raises trio.BrokenResourceError."""
    await connected.send_all(_HTTP2_PREFACE)
    header = await _receive(connected, _FRAME_HEADER)
    return header[3] == _SETTINGS


async def _receive(connected: trio.SocketStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = await connected.receive_some(size - len(received))
        if not more:
            raise trio.BrokenResourceError("closed without an answer")
        received += more
    return received


@define(eq=False)
class Probe:
    """Watches the socket of one daemon, in `run`."""

    _socket: str
    _ask: Callable[[trio.SocketStream], Awaitable[bool]]
    last: Liveness = field(init=False, default=Liveness.ABSENT)
    """What the last probe found."""

    _wanted: trio.Event = field(init=False, factory=trio.Event)
    _answered: trio.Event = field(init=False, factory=trio.Event)

    async def run(self) -> None:
        """Probe whenever somebody asks, and every two seconds while the daemon answers."""
        while True:
            self.last = await self.probe()
            self._answered.set()
            self._answered = trio.Event()
            with trio.move_on_after(_INTERVAL if self.last > Liveness.ABSENT else float("inf")):
                await self._wanted.wait()
            self._wanted = trio.Event()

    def ask(self) -> trio.Event:
        """Want a new answer. The event is set when `last` has it, after two seconds at most."""
        self._wanted.set()
        return self._answered

    async def probe(self) -> Liveness:
        """One probe, which takes up to two seconds."""
        try:
            with trio.socket.socket(trio.socket.AF_UNIX) as connected:
                await connected.connect(self._socket)
                with trio.move_on_after(_DEADLINE):
                    return Liveness.ANSWERS if await self._ask(trio.SocketStream(connected)) else Liveness.ACCEPTS
        except (OSError, trio.BrokenResourceError):  # the latter: it ended just now
            return Liveness.ABSENT
        return Liveness.HUNG if self.last in (Liveness.ANSWERS, Liveness.HUNG) else Liveness.ACCEPTS

    async def answers(self) -> bool:
        """Whether one probe finds that it answers."""
        return await self.probe() is Liveness.ANSWERS
