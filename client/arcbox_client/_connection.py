"""One connection to an agent, with any number of requests and streams under way on it.

Two tasks do the work: one reads and hands every frame to whoever waits for its trace id, the other writes what the
socket did not take at once. A request costs no task, nursery or thread: its own task sleeps until the reader wakes it.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_client._background import beside
from arcbox_client._inbox import ReplyInbox, StreamInbox
from arcbox_client._outbox import Outbox
from arcbox_client.errors import ConnectionLostError, ProtocolViolationError
from arcbox_client.notifications import Notifications, parse_notification
from arcbox_protocol import (
    DEFAULT_MAX_FRAME,
    NOTIFICATIONS,
    ErrorReply,
    FrameDecoder,
    MessageType,
    describe_type,
    encode_frame,
)
from arcbox_protocol.errors import InvalidPayloadError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from arcbox_client._inbox import Inbox
    from arcbox_client._transport import Transport
    from arcbox_protocol import Frame

log = logging.getLogger(__name__)

MAX_INBOUND_FRAME = 64 * 1024 * 1024 + 128 * 1024
"""Bytes: the longest answer to MmapReadFile, 64 MiB, with room for the longest trace id and the fields around it."""

_LAST_WORDS = 1.0
"""Seconds that an agent which takes no more bytes has for saying why."""


@define(eq=False)
class Connection:
    """A connection to the agent at `peer`, a name for error texts."""

    _transport: Transport
    peer: str
    notifications: Notifications = field(init=False, factory=Notifications)
    _outbox: Outbox = field(init=False)
    _inboxes: dict[str, Inbox] = field(init=False, factory=dict)
    _prefix: str = field(init=False, factory=lambda: secrets.token_hex(4))
    _numbers: count[int] = field(init=False, factory=lambda: count(1))
    _last_words: ErrorReply | None = field(init=False, default=None)
    _lost: str | None = field(init=False, default=None)
    _reading_ended: trio.Event = field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._outbox = Outbox(self._transport)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Connection]:
        """Serve requests for as long as the context lasts, and close the transport after it."""
        try:
            async with beside(self._read, self._write):
                yield self
        finally:
            self._lose("the client was closed")
            await self._transport.aclose()

    def new_trace_id(self) -> str:
        """A trace id that no other request of this process has, and hardly one of another."""
        return f"{self._prefix}-{next(self._numbers)}"

    async def request(self, message_type: MessageType, trace_id: str, payload: bytes) -> Frame:
        """Send a request and return the reply with its trace id, be it an Error frame.

        Raises:
            ConnectionLostError: there is no connection any more.
            ValueError: the request is larger than any agent takes.
        """
        await self.send(message_type, trace_id, payload)
        inbox = self._inboxes[trace_id] = ReplyInbox(trio.lowlevel.current_task())

        def abandon(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            del self._inboxes[trace_id]  # from now on nobody may wake this task but Trio
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)
        del self._inboxes[trace_id]
        if inbox.frame is None:
            raise self._loss()
        return inbox.frame

    @contextmanager
    def stream(self, trace_id: str) -> Iterator[StreamInbox]:
        """What comes with this trace id, for as long as the context lasts; later frames of it are dropped."""
        inbox = StreamInbox()
        if self._lost is not None:
            inbox.lose(self._loss())
        self._inboxes[trace_id] = inbox
        try:
            yield inbox
        finally:
            del self._inboxes[trace_id]
            inbox.close()

    async def send(self, message_type: MessageType, trace_id: str, payload: bytes) -> None:
        """Send one frame, whole or, when this is cancelled, not at all. Raises as `request` does.

        Returns without a trip through the scheduler unless the agent is slow to read.
        """
        frame = encode_frame(message_type, trace_id, payload)
        if len(frame) - 4 > DEFAULT_MAX_FRAME:
            raise ValueError(f"a request of {len(frame)} bytes is over the agent's limit of {DEFAULT_MAX_FRAME}")
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._lost is None and self._outbox.is_full:
            await self._outbox.room()
        if self._lost is not None:
            raise self._loss()
        self._outbox.put(frame)

    async def _read(self) -> None:
        try:
            reason = await self._read_frames()
        finally:
            self._reading_ended.set()
        self._lose(reason)

    async def _read_frames(self) -> str:
        """Hand out all that comes; return why nothing more does."""
        decoder = FrameDecoder(MAX_INBOUND_FRAME)
        try:
            while data := await self._transport.receive():
                for frame in decoder.feed(data):
                    inbox = self._inboxes.get(frame.trace_id)
                    if inbox is None:
                        self._take_unasked(frame)
                    elif not inbox.deliver(frame):
                        await inbox.room()
                if decoder.fault is not None:
                    return f"the agent sent what is no frame: {decoder.fault}"
        except (ProtocolViolationError, InvalidPayloadError) as error:
            return f"the agent sent what can't be understood: {error}"
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            return f"the connection broke: {error}"
        return "the agent closed the connection" + (" in the middle of a frame" if decoder.has_partial else "")

    def _take_unasked(self, frame: Frame) -> None:
        if frame.type in NOTIFICATIONS:
            self.notifications.deliver(parse_notification(frame))
        elif frame.type == MessageType.Error and not frame.trace_id:
            self._last_words = ErrorReply.decode(frame.payload)
        else:  # most likely a late reply to a request that was given up
            log.debug("%s: dropped %s, trace id %r", self.peer, describe_type(frame.type), frame.trace_id)

    async def _write(self) -> None:
        try:
            await self._outbox.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            with trio.move_on_after(_LAST_WORDS):
                await self._reading_ended.wait()
            self._lose(f"the connection broke: {error}")

    def _lose(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._outbox.give_up()
        for inbox in list(self._inboxes.values()):
            inbox.lose(self._loss())
        self.notifications.lose(self._loss())

    def _loss(self) -> ConnectionLostError:
        """An error of its own for each who gets it: tracebacks grow where an exception is raised twice."""
        text = f"no connection to {self.peer}: {self._lost}"
        if self._last_words is None:
            return ConnectionLostError(text)
        said = self._last_words
        return ConnectionLostError(f"{text}; it said: {said.message} ({said.code})", said)
