"""The one way to a connection's peer: whole frames, one after the other."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from protocol import encode_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.transport import Transport
    from handlers import FileReply
    from protocol import Buffer

_WRITES_BETWEEN_CHECKPOINTS = 64


class FrameWriter:
    """Writes frames to a transport. Tasks that find it busy wait in line, and so feel a slow peer.

    A write that ends half-way, cancelled or failed, breaks the writer for good: nothing that follows could be told
    from the rest of the broken frame.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = trio.Lock()
        self._writes = 0
        self.broken = False
        """Whether the connection takes no more frames."""

    async def write(self, *parts: Buffer) -> None:
        """Write whole frames, given in as many parts as is convenient.

        Returns without a trip through the scheduler when the socket takes everything at once, but not every time: a
        peer that reads fast must not keep the other connections waiting.

        Raises:
            trio.BrokenResourceError: the connection is gone, or a frame before this one was cut off.
        """
        self._writes += 1
        if self._writes % _WRITES_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
        sent = 0
        if self._lock.locked():
            await self._lock.acquire()
        else:
            self._check()
            sent = self._send_nowait(parts)
            if sent == sum(map(len, parts)):
                return
            self._lock.acquire_nowait()  # nobody ran in between: whoever comes now waits until this frame is whole
        try:
            with self._whole_frame():
                for part in parts:
                    if sent < len(part):
                        await self._transport.send(memoryview(part)[sent:])
                    sent = max(0, sent - len(part))
        finally:
            self._lock.release()

    async def write_file(self, message_type: int, trace_id: str, reply: FileReply) -> None:
        """Write one frame around a part of a file. Raises as `write` does."""
        if self._lock.locked():
            await self._lock.acquire()
        else:
            self._lock.acquire_nowait()
        try:
            with self._whole_frame():
                await self._transport.send(encode_header(message_type, trace_id, reply.size) + reply.head)
                await self._transport.send(reply.tail(await self._transport.send_file(reply.file)))
        finally:
            self._lock.release()

    def _send_nowait(self, parts: Sequence[Buffer]) -> int:
        try:
            return self._transport.send_nowait(parts)
        except trio.BrokenResourceError:
            self.broken = True
            raise

    def _check(self) -> None:
        if self.broken:
            raise trio.BrokenResourceError("the connection is gone, or a frame was cut off half-way")

    @contextmanager
    def _whole_frame(self) -> Iterator[None]:
        self._check()
        self.broken = True
        try:
            yield
            self.broken = False
        finally:
            if self.broken:
                self._transport.abort()
