"""Bytes from one socket to another and back, until both ends have said all.

Not one byte is looked at. Each end may close its sending side and go on receiving, so the two directions of a pair end
one by one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_SMALL: Final = 16 * 1024
"""Bytes of one receive. Whoever fills it has more, which goes through a pipe."""

_BULK: Final = 1024 * 1024
"""Bytes of the pipe, the most that anybody may ask for: pipe(7); and of the send buffers of Unix sockets."""

_COPIED: Final = 256 * 1024
"""Bytes of one receive from or for AF_VSOCK, where splice(2) works, and is slower than copying."""

_ROUNDS_BETWEEN_CHECKPOINTS: Final = 16
"""Receptions without any that had to wait."""


@define(eq=False)
class SocketPair:
    """Two connected sockets that don't block, and are closed when neither direction needs them any more."""

    near: socket.socket
    far: socket.socket
    _closed: Callable[[], None]
    """Called then."""

    _directions: int = field(init=False, default=2)

    async def relay(self, tasks: trio.Nursery) -> None:
        """Relay in both directions, one of which is a task of its own: a nursery takes longer than a small answer."""
        tasks.start_soon(self._run, self.far, self.near)
        await self._run(self.near, self.far)

    async def _run(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            await Direction(source, sink).run()
        except OSError:  # one end is gone: so is the connection, for both
            self._abort()
        except Exception:
            log.exception("relay failed")
            self._abort()
        finally:
            self._leave()

    def _abort(self) -> None:
        """End both directions."""
        for end in (self.near, self.far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _leave(self) -> None:
        """One direction has ended; the last of both closes the sockets."""
        self._directions -= 1
        if self._directions == 0:
            self.near.close()
            self.far.close()
            self._closed()


@define(eq=False)
class Direction:
    """From one socket to another, until the end of the stream."""

    _source: socket.socket
    _sink: socket.socket
    _rounds: int = field(init=False, default=0)

    async def run(self) -> None:
        """Relay until the source ends, and then end the sink. Raises OSError: one of them is gone."""
        size = _SMALL
        while data := await self._receive(size):
            await self._send(data)
            if len(data) < size:
                continue
            if socket.AF_VSOCK in (self._source.family, self._sink.family):
                size = _COPIED
            else:
                await self._splice_all()
                break
        self._sink.shutdown(socket.SHUT_WR)

    async def _receive(self, size: int) -> bytes:
        while True:
            try:
                data = self._source.recv(size)
            except BlockingIOError:
                await self._readable()
            else:
                await self._take_turns()
                return data

    async def _readable(self) -> None:
        self._rounds = 0
        await trio.lowlevel.wait_readable(self._source)

    async def _send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            try:
                sent += self._sink.send(memoryview(data)[sent:] if sent else data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink)

    async def _splice_all(self) -> None:
        """Have the kernel move the rest: neither copied here nor allocated."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _BULK)
            if self._sink.family == socket.AF_UNIX:
                self._sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BULK)
            source, sink = self._source.fileno(), self._sink.fileno()
            while True:
                try:
                    inside = os.splice(source, writer, _BULK)
                except BlockingIOError:
                    await self._readable()
                    continue
                if not inside:
                    return
                while inside:
                    try:
                        inside -= os.splice(reader, sink, inside)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sink)
                await self._take_turns()
        finally:
            os.close(reader)
            os.close(writer)

    async def _take_turns(self) -> None:
        self._rounds += 1
        if self._rounds % _ROUNDS_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
