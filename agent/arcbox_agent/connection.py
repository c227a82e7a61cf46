"""One connection: bytes in, frames through a memory channel, commands, replies out. One nursery holds it all.

Two tasks do the quick part. The reader turns what one receive brought into a batch of frames; the dispatcher answers
the batch and sends the replies as one. Whatever takes longer, streams and slow commands, runs in a nursery within.
The peer going away cancels everything, and that is all the clean-up there is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_agent.dispatcher import Dispatcher
from arcbox_agent.reader import FrameReader
from arcbox_agent.request_context import Activity, current_activity
from arcbox_agent.streams import Streams
from arcbox_agent.writer import FrameWriter
from arcbox_protocol import ErrorReply, Frame, FrameDecoder, MessageType, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.settings import Limits
    from arcbox_agent.transport import Transport
    from arcbox_handlers import Context, Registry

log = logging.getLogger(__name__)

_READ_AHEAD = 1
"""Batches of frames that may wait while the dispatcher is busy."""

_LINGER = 1.0
"""Seconds in which a peer that is sent away may read why, before the socket closes under it."""


async def send_away(transport: Transport, complaint: ErrorReply) -> None:
    """Tell a peer why its connection ends, and end it. Closing with its bytes unread could take the words back."""
    log.info("connection refused", extra={"code": complaint.code, "reason": complaint.message})
    with trio.move_on_after(_LINGER):
        await transport.send(encode_frame(MessageType.Error, "", complaint.encode()))
        await transport.send_eof()
        while (data := transport.receive_nowait()) != b"":
            if data is None:
                await transport.readable()


@define(eq=False)
class Connection:
    """Serves the requests of one peer."""

    _transport: Transport
    _registry: Registry
    _context: Context
    _limits: Limits
    _peer: str
    """Who it is, for the log."""

    _activity: Activity = field(init=False)
    _reader: FrameReader = field(init=False)
    _batches: trio.MemoryReceiveChannel[list[Frame]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        limits = self._limits
        self._activity = Activity(self._peer)
        batches, self._batches = trio.open_memory_channel[list[Frame]](_READ_AHEAD)
        self._reader = FrameReader(self._transport, FrameDecoder(limits.max_frame), limits.frame_timeout, batches)

    def drain(self) -> None:
        """Take no more requests; `serve` returns once those that were taken are answered."""
        self._reader.stop()

    async def serve(self) -> None:
        """Answer requests until the peer is gone, or can't be understood, or `drain`; close the transport then."""
        current_activity.set(self._activity)
        log.debug("connected")
        try:
            await self._serve()
        except* trio.BrokenResourceError as gone:
            log.debug("disconnected", extra={"reason": str(gone.exceptions[0])})
        except* Exception:
            log.exception("connection ended by an error of the agent's own")
        finally:
            self._transport.close()

    async def _serve(self) -> None:
        async with trio.open_nursery() as connection:
            connection.start_soon(self._work, connection.cancel_scope.cancel)
            await self._reader.run()

    async def _work(self, end: Callable[[], None]) -> None:
        # The task that every request wakes: the fewer frames it has, the less there is to go through each time.
        async with trio.open_nursery() as work:
            await self._dispatcher(work).run(self._batches)
            if self._reader.complaint is not None:
                work.cancel_scope.cancel()
        if self._reader.complaint is not None:
            await send_away(self._transport, self._reader.complaint)
        end()

    def _dispatcher(self, work: trio.Nursery) -> Dispatcher:
        writer = FrameWriter(self._transport)
        return Dispatcher(
            self._registry,
            self._context,
            self._reader,
            writer,
            Streams(writer),
            work,
            trio.Semaphore(self._limits.max_concurrent_requests),
            self._activity,
        )
