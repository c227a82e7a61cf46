"""Whether a daemon answers on its Unix socket, as it is now and not as it once was."""

from __future__ import annotations

import enum
import math
import socket
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_DEADLINE: Final = 2.0
"""Seconds in which a daemon must answer."""

_INTERVAL: Final = 2.0
"""Seconds between two probes of a daemon that answers."""

_LATE: Final = 0.015
"""Seconds that a probe may take before nobody waits for its answer any more."""

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

    unanswered: int = field(init=False, default=0)
    """Probes without an answer since the last answer."""

    _wanted: trio.Event = field(init=False, factory=trio.Event)
    _answered: trio.Event = field(init=False, factory=trio.Event)
    _began: float = field(init=False, default=math.inf)
    """When the probe that runs has begun; infinite between two."""

    async def run(self) -> None:
        """Probe whenever somebody asks, and every two seconds while the daemon answers."""
        while True:
            self._began = trio.current_time()
            self.last = await self.probe()
            self._began = math.inf
            self.unanswered = self.unanswered + 1 if self.last is Liveness.HUNG else 0
            self._answered.set()
            self._answered = trio.Event()
            with trio.move_on_after(_INTERVAL if self.last > Liveness.ABSENT else math.inf):
                await self._wanted.wait()
            self._wanted = trio.Event()

    def ask(self) -> trio.Event:
        """Want a new answer. The event is set when `last` has it, or when that has taken too long already."""
        self._wanted.set()
        if trio.current_time() < self._began + _LATE:
            return self._answered
        late = trio.Event()
        late.set()
        return late

    async def next(self) -> None:
        """Wait until a probe has ended."""
        await self._answered.wait()

    async def probe(self) -> Liveness:
        """One probe, which takes up to two seconds."""
        try:
            with trio.socket.from_stdlib_socket(_connected(self._socket)) as connected:
                with trio.move_on_after(_DEADLINE):
                    return Liveness.ANSWERS if await self._ask(trio.SocketStream(connected)) else Liveness.ACCEPTS
        except BlockingIOError:  # nobody has accepted what fills its backlog: unix(7)
            await trio.sleep(_DEADLINE)
        except (OSError, trio.BrokenResourceError):  # the latter: it ended just now
            return Liveness.ABSENT
        return Liveness.HUNG if self.last in (Liveness.ANSWERS, Liveness.HUNG) else Liveness.ACCEPTS

    async def answers(self) -> bool:
        """Whether one probe finds that it answers."""
        return await self.probe() is Liveness.ANSWERS


def _connected(path: str) -> socket.socket:
    """A connection that does not block. Raises OSError, BlockingIOError: there is no room for it."""
    connecting = socket.socket(socket.AF_UNIX)
    try:
        connecting.setblocking(False)
        connecting.connect(path)
    except OSError:
        connecting.close()
        raise
    return connecting
