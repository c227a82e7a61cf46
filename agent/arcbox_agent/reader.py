"""The reading half of a connection: bytes off the transport, whole frames out, one batch for each receive.

Whoever wants the next batch reads the socket itself (`FrameReader.next_batch`). While a command runs that may wait,
nobody wants one: a task reads one batch ahead then, and notices a peer that leaves (`FrameReader.reading_ahead`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_protocol import ErrorReply
from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_agent.transport import Transport
    from arcbox_protocol import Frame, FrameDecoder

_READS_IN_A_ROW: Final = 16
"""Receives without waiting before others get their turn: the scheduler has to see every task now and then."""

_WAITS_ALONE: Final = 2
"""Waits without another reader's batch that make a reader the only busy one. Trio often runs the last task of one round
first in the next: a single wait says nothing."""


@define(eq=False)
class ReadCount:
    """How many batches all the readers together have read, which tells each whether it is the only busy one.

    That one receives without a trip through the scheduler first. Where several are busy, each waits for its turn: a
    peer that answers fast would keep the others waiting, and most receives would find nothing.
    """

    value: int = 0


@define(eq=False)
class FrameReader:
    """The only one who reads from its transport: at a time, one task waits for `next_batch` or is `reading_ahead`."""

    _transport: Transport
    _decoder: FrameDecoder
    _frame_timeout: float
    """Seconds in which a frame that was begun must be whole."""

    _count: ReadCount = field(factory=ReadCount)
    """Shared with the readers of other connections."""

    _ahead: trio.MemorySendChannel[list[Frame]] | None = field(init=False, default=None)
    _batches: trio.MemoryReceiveChannel[list[Frame]] | None = field(init=False, default=None)
    """The two ends of the channel for what is read ahead. Most connections never need one."""

    _frame_deadline: float | None = field(init=False, default=None)
    """When the frame that was begun must be whole, in Trio's time; None when none was, or nobody waited for it yet."""

    _timed_out: bool = field(init=False, default=False)
    _stopped: bool = field(init=False, default=False)
    _reads: int = field(init=False, default=0)
    """Receives since one had to be waited for."""

    _count_after: int = field(init=False, default=0)
    """What the shared count was after this reader's last batch."""

    _waits_alone: int = field(init=False, default=_WAITS_ALONE)
    """Waits in a row in which no other reader had a batch."""

    @property
    def complaint(self) -> ErrorReply | None:
        """What the peer did that ends the connection, in words for the peer."""
        if self._timed_out:
            text = f"a frame was begun and not finished within {self._frame_timeout:g} s"
            return ErrorReply(ErrorCode.TIMED_OUT, text)
        fault = self._decoder.fault
        return ErrorReply(fault.code, str(fault)) if fault is not None else None

    async def next_batch(self) -> list[Frame]:
        """The next frames, at least one.

        Raises:
            trio.EndOfChannel: there are no more: the peer sends none, did something wrong (`complaint`), or `stop`.
            trio.BrokenResourceError: the peer is gone.
        """
        if self._batches is not None:
            with suppress(trio.WouldBlock):
                return self._batches.receive_nowait()
        return await self._read()

    @asynccontextmanager
    async def reading_ahead(self) -> AsyncIterator[None]:
        """Have the next batch read, while the caller waits for something else than `next_batch`.

        Raises:
            trio.BrokenResourceError: in a group: the peer is gone, and what ran in the context was cancelled.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_ahead)
            yield
            nursery.cancel_scope.cancel()

    async def wait_peer_gone(self) -> None:
        """Wait until the peer is gone altogether; one that only stopped sending may still want its replies.

        Raises:
            trio.BrokenResourceError: always, then.
        """
        await self._transport.wait_hangup()
        where = "in the middle of a frame" if self._decoder.has_partial else "between frames"
        raise trio.BrokenResourceError(f"the peer closed the connection {where}")

    def stop(self) -> None:
        """Read no more. Batches that were read already are still handed out."""
        self._stopped = True
        self._transport.interrupt()

    async def _read_ahead(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # what ran in the context had not to wait
        if self._ahead is None:
            self._ahead, self._batches = trio.open_memory_channel[list["Frame"]](1)
        if self._ahead.statistics().current_buffer_used == 0:
            with suppress(trio.EndOfChannel):
                self._ahead.send_nowait(await self._read())
        await self.wait_peer_gone()

    async def _read(self) -> list[Frame]:
        """Receive until that completes a frame. Raises as `next_batch` does, and again whenever it is called again."""
        transport, decoder = self._transport, self._decoder
        if self._reads >= _READS_IN_A_ROW:
            await trio.lowlevel.checkpoint()
            self._note_waited()
        wait = self._waits_alone < _WAITS_ALONE
        while decoder.fault is None and not self._timed_out and not self._stopped:
            if wait:
                await self._wait_readable()
                self._note_waited()
                wait = False
            elif (data := transport.receive_nowait()) is None:
                wait = True
            elif not data:
                break
            elif frames := decoder.feed(data):
                self._frame_deadline = None
                self._reads += 1
                self._count.value += 1
                self._count_after = self._count.value
                return frames
        raise trio.EndOfChannel

    def _note_waited(self) -> None:
        self._reads = 0
        self._waits_alone = self._waits_alone + 1 if self._count.value == self._count_after else 0

    async def _wait_readable(self) -> None:
        """Wait for more, no longer than a frame that was begun has time. That runs only while somebody waits here."""
        try:
            if not self._decoder.has_partial:
                await self._transport.readable()
                return
            if self._frame_deadline is None:
                self._frame_deadline = trio.current_time() + self._frame_timeout
            with trio.CancelScope(deadline=self._frame_deadline) as scope:
                await self._transport.readable()
            self._timed_out = scope.cancelled_caught
        except trio.ClosedResourceError:  # by `stop`
            return
