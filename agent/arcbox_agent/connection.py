"""One connection: bytes in, frames, commands, replies out. One nursery holds it all.

The connection's task takes a batch of frames from the reader, answers it and sends the replies as one. Streams and slow
commands run in the nursery beside it. The peer going away cancels everything, and that is all the clean-up there is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_agent.dispatcher import Dispatcher
from arcbox_agent.reader import FrameReader, ReadCount
from arcbox_agent.request_context import current_peer
from arcbox_agent.writer import FrameWriter
from arcbox_protocol import ErrorReply, FrameDecoder, MessageType, encode_frame

if TYPE_CHECKING:
    from arcbox_agent.settings import Limits
    from arcbox_agent.transport import Transport
    from arcbox_handlers import Context, Registry

log = logging.getLogger(__name__)

_LINGER = 1.0
"""Seconds that a refused peer has to read why, before its socket is closed."""


async def send_away(transport: Transport, complaint: ErrorReply) -> None:
    """Tell a peer why its connection ends, and end it.

    Closing a socket with bytes of the peer's unread resets the connection, and could take the words back.
    """
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

    _read_count: ReadCount = field(factory=ReadCount)
    """Shared with other connections."""

    _reader: FrameReader = field(init=False)

    @_reader.default
    def _make_reader(self) -> FrameReader:
        decoder = FrameDecoder(self._limits.max_frame)
        return FrameReader(self._transport, decoder, self._limits.frame_timeout, self._read_count)

    def drain(self) -> None:
        """Take no more requests; `serve` returns once those that were taken are answered."""
        self._reader.stop()

    async def serve(self) -> None:
        """Answer requests until the peer is gone, or can't be understood, or `drain`; close the transport then."""
        current_peer.set(self._peer)
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
        async with trio.open_nursery() as work:
            writer = FrameWriter(self._transport)
            dispatcher = Dispatcher(self._registry, self._context, self._limits, self._reader, writer, work)
            await dispatcher.run()
            if self._reader.complaint is None:
                await dispatcher.wait_idle()
            work.cancel_scope.cancel()
        if self._reader.complaint is not None:
            await send_away(self._transport, self._reader.complaint)
