"""The one way to a connection's peer: whole frames, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_protocol import encode_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.transport import Transport
    from arcbox_handlers import FileReply
    from arcbox_protocol import Buffer

_WRITES_BETWEEN_CHECKPOINTS = 64


@define(eq=False)
class FrameWriter:
    """Writes frames to a transport. Tasks that find it busy wait in line: a slow peer slows them down.

    A write that ends half-way, cancelled or failed, breaks the writer for good: nothing that follows could be told
    from the rest of the broken frame.
    """

    _transport: Transport
    broken: bool = field(init=False, default=False)
    """Whether the connection takes no more frames."""

    _busy: bool = field(init=False, default=False)
    _waiting: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _writes: int = field(init=False, default=0)

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
        sent = self.write_nowait(*parts)
        if sent < sum(map(len, parts)):
            await self.finish(parts, sent)

    def write_nowait(self, *parts: Buffer) -> int:
        """Write whole frames as far as that goes without waiting. Raises as `write` does.

        Returns:
            How many bytes are written. If that is not all, `finish` must be called before anything else happens.
        """
        if self._busy:
            return 0
        if self.broken:
            raise _broken()
        try:
            return self._transport.send_nowait(parts)
        except trio.BrokenResourceError:
            self.broken = True
            raise

    async def finish(self, parts: Sequence[Buffer], sent: int) -> None:
        """Write what `write_nowait` could not, in turn. Raises as `write` does."""
        await self._begin()  # nobody else ran since: where a part is written already, it is our turn at once
        try:
            self.broken = True
            for part in parts:
                if sent < len(part):
                    await self._transport.send(memoryview(part)[sent:])
                sent = max(0, sent - len(part))
            self.broken = False
        finally:
            self._end()

    async def write_file(self, message_type: int, trace_id: str, reply: FileReply) -> None:
        """Write one frame around a part of a file. Raises as `write` does."""
        head = encode_header(message_type, trace_id, reply.size) + reply.head
        await self._begin()
        try:
            self.broken = True
            await self._transport.send(head)
            await self._transport.send(reply.tail(await self._transport.send_file(reply.file)))
            self.broken = False
        finally:
            self._end()

    async def _begin(self) -> None:
        """Wait for our turn, if anybody has it."""
        if self._busy:
            await self._waiting.park()
        self._busy = True
        if self.broken:
            self._pass_on()
            raise _broken()

    def _end(self) -> None:
        """Leave the turn to the next; with half a frame on the wire, end the connection."""
        self._pass_on()
        if self.broken:
            self._transport.abort()

    def _pass_on(self) -> None:
        """Give the turn to who waits longest; nobody else can take it before that task runs."""
        if self._waiting:
            self._waiting.unpark()
        else:
            self._busy = False


def _broken() -> trio.BrokenResourceError:
    return trio.BrokenResourceError("the connection is gone, or a frame was cut off half-way")
