"""Byte streams under the client: a raw socket for speed, any `trio.abc.Stream` for everything else.

The raw socket tries each call before it waits, and only EAGAIN enters Trio's scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    import socket

    from arcbox_protocol import Buffer

RECEIVE_SIZE = 256 * 1024
"""Bytes asked of one receive: all the frames in it are handed out in one go."""

_CALLS_BETWEEN_CHECKPOINTS = 16
"""A peer that sends or reads fast must not keep the other tasks of this process waiting."""


class Transport(Protocol):
    """A byte stream to one agent. One task receives, one sends."""

    async def receive(self) -> bytes | bytearray:
        """The next bytes; empty at the end of the stream. Raises `trio.BrokenResourceError`."""

    def send_nowait(self, data: Buffer) -> int:
        """Send what can be sent without waiting; how many bytes that was. Raises `trio.BrokenResourceError`."""

    async def send(self, data: Buffer) -> None:
        """Send all of `data`. Raises `trio.BrokenResourceError`."""

    async def aclose(self) -> None:
        """Close it without waiting for anything."""


class SocketTransport:
    """A connected stream socket, which it owns."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._receives = 0

    async def receive(self) -> bytes:
        self._receives += 1
        if self._receives % _CALLS_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._socket.recv(RECEIVE_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise trio.BrokenResourceError(_reason(error)) from error

    def send_nowait(self, data: Buffer) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(_reason(error)) from error

    async def send(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.send_nowait(rest) :]
            if rest:
                await trio.lowlevel.wait_writable(self._socket)

    async def aclose(self) -> None:
        self._socket.close()


class StreamTransport:
    """Any byte stream of Trio's, which it owns."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self) -> bytes | bytearray:
        return await self._stream.receive_some()

    def send_nowait(self, data: Buffer) -> int:  # noqa: ARG002  the interface's
        return 0

    async def send(self, data: Buffer) -> None:
        await self._stream.send_all(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
