"""Byte streams under connections: a raw socket for speed, a memory stream for unit tests.

The raw socket is why a ping costs little more than the kernel's part of it: each call is first tried without waiting,
and only EAGAIN enters Trio's scheduler. `trio.SocketStream` enters it on every call.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio.testing import MemoryReceiveStream, MemorySendStream

    from arcbox_handlers import OpenFile
    from arcbox_protocol import Buffer

    MemoryStream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]

RECEIVE_SIZE = 64 * 1024
"""Bytes asked of one receive: all the frames in it are handled in one go."""

_FIRST_RECEIVE = 16 * 1024
"""Bytes asked of a receive after a short one: allocating `RECEIVE_SIZE` costs more than receiving a small frame."""

SEND_BUFFER = 1024 * 1024
"""The kernel's send buffer per socket, in bytes: bulk replies need few wake-ups."""

_SENDS_BETWEEN_CHECKPOINTS = 16

_POLL_INTERVAL = 0.5
"""Seconds between two polls for a hang-up, when epoll_create(2) fails."""

_ZEROS = bytes(64 * 1024)


class Transport(Protocol):
    """A byte stream to one peer. One task receives, one at a time sends."""

    def receive_nowait(self) -> bytes | None:
        """The next bytes, at most `RECEIVE_SIZE`; None when there are none yet, empty at the end of the stream.

        Raises:
            trio.BrokenResourceError: the connection is gone.
        """

    def readable(self) -> Awaitable[None]:
        """Wait until `receive_nowait` has bytes, the end of the stream, or an error.

        Raises:
            trio.ClosedResourceError: `interrupt` was called meanwhile.
        """

    def interrupt(self) -> None:
        """End the wait for something to receive. Nothing is closed."""

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        """Send what can be sent without waiting, and return how many bytes that was: maybe none.

        Raises:
            trio.BrokenResourceError: the connection is gone.
        """

    async def send(self, data: Buffer) -> None:
        """Send all of `data`.

        Raises:
            trio.BrokenResourceError: the connection is gone.
        """

    async def send_file(self, file: OpenFile) -> int:
        """Send a part of a file; zeros for what is not there any more, or can't be read.

        Returns:
            How many bytes were the file's.

        Raises:
            trio.BrokenResourceError: the connection is gone.
        """

    async def wait_hangup(self) -> None:
        """Wait until the peer is gone altogether, whatever it has sent that nobody received yet.

        A peer that only closed its sending side still wants its replies. Where that can't be told apart, it is
        gone too.
        """

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""

    def abort(self) -> None:
        """Make the stream end at once, for both sides and for whoever uses it now."""

    def close(self) -> None:
        """Close it, at once. Nobody uses it any more."""


class SocketTransport:
    """A connected stream socket, which it owns."""

    __slots__ = ("_asked", "_descriptor", "_socket")  # with many connections their memory is never in the cache

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._descriptor = connected.fileno()
        self._asked = _FIRST_RECEIVE
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # AF_VSOCK has its own, and ignores this

    def receive_nowait(self) -> bytes | None:
        try:
            data = self._socket.recv(self._asked)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._asked = RECEIVE_SIZE if len(data) == self._asked else _FIRST_RECEIVE
        return data

    def readable(self) -> Awaitable[None]:
        return trio.lowlevel.wait_readable(self._descriptor)  # noqa: ASYNC105  by whoever gets it, a frame less deep

    def interrupt(self) -> None:
        trio.lowlevel.notify_closing(self._socket)

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        try:
            return self._socket.send(parts[0]) if len(parts) == 1 else self._socket.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send(self, data: Buffer) -> None:
        done = self.send_nowait((data,))
        if done < len(data):
            rest = memoryview(data)[done:]
            await self._send_all(len(rest), lambda sent: self._socket.send(rest[sent:]))

    async def send_file(self, file: OpenFile) -> int:
        sent = sends = 0
        copied = self._socket.family == socket.AF_VSOCK  # where Linux 6.1 makes a packet of each page of sendfile(2)
        while sent < file.length:
            try:
                count = await file.send(self._descriptor, sent, copied=copied)
            except BlockingIOError:
                await self._wait_writable()
                continue
            if count == 0:
                break
            sent += count
            sends += 1
            if sends % _SENDS_BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
        left = file.length - sent
        while left:
            zeros = _ZEROS[:left]
            await self.send(zeros)
            left -= len(zeros)
        return sent

    async def _send_all(self, size: int, send: Callable[[int], int]) -> int:
        """Call `send` with what was sent already until it is `size`, or there is nothing left to send."""
        sent = sends = 0
        while sent < size:
            try:
                count = send(sent)
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            if count == 0:
                break
            sent += count
            sends += 1
            if sends % _SENDS_BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
        return sent

    async def _wait_writable(self) -> None:
        with suppress(trio.ClosedResourceError):  # by `interrupt`, which means others
            await trio.lowlevel.wait_writable(self._socket)

    async def wait_hangup(self) -> None:
        # Half-close does not cross every VMM: over vsock the end of the stream is the end of the peer. POLLHUP and
        # POLLERR are always reported.
        events = 0 if self._socket.family == socket.AF_UNIX else select.EPOLLRDHUP
        poll = select.poll()  # needs no descriptor, and most often the peer is gone already
        poll.register(self._socket, events)
        while not poll.poll(0):
            try:
                watch = select.epoll()
            except OSError:  # no descriptor is left
                await trio.sleep(_POLL_INTERVAL)
                continue
            with watch:
                watch.register(self._socket, events)
                await trio.lowlevel.wait_readable(watch.fileno())

    async def send_eof(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        with suppress(OSError):  # it ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class MemoryTransport:
    """One end of `trio.testing.memory_stream_pair()`, for unit tests."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream
        self._received: bytes | None = None
        self._ended = trio.Event()
        self._reading = trio.CancelScope()

    def receive_nowait(self) -> bytes | None:
        received, self._received = self._received, None
        return b"" if self._ended.is_set() else received

    async def readable(self) -> None:
        with trio.CancelScope() as self._reading:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                self._received = bytes(await self._stream.receive_some(RECEIVE_SIZE))
            except trio.ClosedResourceError:  # by `abort`
                self._received = b""
            if not self._received:
                self._ended.set()
        if self._reading.cancelled_caught:
            raise trio.ClosedResourceError("interrupted")

    def interrupt(self) -> None:
        self._reading.cancel()

    def send_nowait(self, parts: Sequence[Buffer]) -> int:  # noqa: ARG002  the interface's
        return 0

    async def send(self, data: Buffer) -> None:
        try:
            await self._stream.send_all(data)
        except trio.ClosedResourceError as error:  # by `abort`
            raise trio.BrokenResourceError(str(error)) from error

    async def send_file(self, file: OpenFile) -> int:
        data = os.pread(file.descriptor, file.length, file.offset)
        await self.send(data.ljust(file.length, b"\0"))
        return len(data)

    async def wait_hangup(self) -> None:
        await self._ended.wait()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        self._stream.send_stream.close()
        self._stream.receive_stream.close()
