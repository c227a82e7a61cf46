"""Many requests and streams on one byte stream to an agent.

Two tasks do the work: one reads and hands every frame to whoever waits for its trace id, the other writes what the
socket did not take at once. A request costs no task, nursery or thread: its own task sleeps until the reader wakes it.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Protocol

import trio
from attrs import define, field

from arcbox_client._background import beside
from arcbox_client.errors import ConnectionLostError, ProtocolViolationError
from arcbox_client.streams import Notifications, parse_notification
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

    from arcbox_client._byte_streams import ByteStream
    from arcbox_protocol import Frame

log = logging.getLogger(__name__)

MAX_INBOUND_FRAME = 64 * 1024 * 1024 + 128 * 1024
"""Bytes: the longest answer to MmapReadFile, 64 MiB, with room for the longest trace id and the fields around it."""

_INBOX_SIZE = 1024 * 1024
"""Bytes of a stream that may wait for a slow consumer: after that, the byte stream is not read any further."""

_FRAME_OVERHEAD = 256
"""What a frame costs in memory besides its payload, so that empty frames are bounded too."""

_OUTBOX_SIZE = 1024 * 1024
"""Bytes that may wait for an agent that does not read; whoever has more to send waits until they are gone."""

_LAST_ERROR_WITHIN = 1.0
"""Seconds to wait for the agent's last Error frame once it takes no more bytes."""


@define(eq=False)
class Multiplexer:
    """Requests and streams over `_bytes`; `_agent` is the agent's name in error texts."""

    _bytes: ByteStream
    _agent: str
    notifications: Notifications = field(init=False, factory=Notifications)
    _outbox: Outbox = field(init=False)
    _inboxes: dict[str, Inbox] = field(init=False, factory=dict)
    _prefix: str = field(init=False, factory=lambda: secrets.token_hex(4))
    _numbers: count[int] = field(init=False, factory=lambda: count(1))
    _last_error: ErrorReply | None = field(init=False, default=None)
    _lost: str | None = field(init=False, default=None)
    _reading_ended: trio.Event = field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._outbox = Outbox(self._bytes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Multiplexer]:
        """Serve requests for as long as the context lasts, and close the byte stream after it."""
        try:
            async with beside(self._read, self._write):
                yield self
        finally:
            self._lose("the client was closed")
            await self._bytes.aclose()

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
            while data := await self._bytes.receive():
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
            self._last_error = ErrorReply.decode(frame.payload)
        else:  # most likely a late reply to a request that was given up
            log.debug("%s: dropped %s, trace id %r", self._agent, describe_type(frame.type), frame.trace_id)

    async def _write(self) -> None:
        try:
            await self._outbox.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            with trio.move_on_after(_LAST_ERROR_WITHIN):
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
        text = f"no connection to {self._agent}: {self._lost}"
        if self._last_error is None:
            return ConnectionLostError(text)
        said = self._last_error
        return ConnectionLostError(f"{text}; it said: {said.message} ({said.code})", said)


class Inbox(Protocol):
    """What waits for the frames of one trace id."""

    def deliver(self, frame: Frame) -> bool:
        """Take a frame; False when no further one should be read before `room`."""

    async def room(self) -> None:
        """Wait until frames are welcome again."""

    def lose(self, error: ConnectionLostError) -> None:
        """Nothing more will come."""


@define(eq=False)
class ReplyInbox:
    """The one reply to a request that `task` sleeps for."""

    _task: trio.lowlevel.Task
    frame: Frame | None = None
    error: ConnectionLostError | None = None

    def deliver(self, frame: Frame) -> bool:
        if self.frame is None and self.error is None:  # a second reply to one request is one too many
            self.frame = frame
            trio.lowlevel.reschedule(self._task)
        return True

    async def room(self) -> None:
        """There is always."""

    def lose(self, error: ConnectionLostError) -> None:
        if self.frame is None and self.error is None:
            self.error = error
            trio.lowlevel.reschedule(self._task)


@define(eq=False)
class StreamInbox:
    """The frames of one stream, in order, as many as fit."""

    _frames: deque[Frame] = field(init=False, factory=deque)
    _size: int = field(init=False, default=0)
    _arrival: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _room: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _error: ConnectionLostError | None = field(init=False, default=None)
    _closed: bool = field(init=False, default=False)

    def deliver(self, frame: Frame) -> bool:
        self._frames.append(frame)
        self._size += len(frame.payload) + _FRAME_OVERHEAD
        self._arrival.unpark()
        return self._size < _INBOX_SIZE

    async def room(self) -> None:
        while self._size >= _INBOX_SIZE and not self._closed:
            await self._room.park()

    def lose(self, error: ConnectionLostError) -> None:
        self._error = error
        self._arrival.unpark_all()

    async def next(self) -> Frame:
        """The next frame; those that came before the connection was lost come first.

        Raises:
            ConnectionLostError: there will be none.
        """
        await trio.lowlevel.checkpoint()
        while not self._frames:
            if self._error is not None:
                raise self._error
            await self._arrival.park()
        frame = self._frames.popleft()
        self._size -= len(frame.payload) + _FRAME_OVERHEAD
        if self._size < _INBOX_SIZE:
            self._room.unpark_all()
        return frame

    def close(self) -> None:
        """Nobody wants the rest."""
        self._closed = True
        self._frames.clear()
        self._room.unpark_all()


@define(eq=False)
class Outbox:
    """Frames on their way to the agent.

    A frame goes to the socket at once where that takes it; what is left over goes with a task of its own. So a request
    that is cancelled never leaves half a frame behind, and the connection stays usable.
    """

    _bytes: ByteStream
    _waiting: list[memoryview] = field(init=False, factory=list)
    _unsent: int = field(init=False, default=0)
    """Bytes that wait or are being sent: as long as there are any, no frame may go to the socket directly."""

    _work: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _room: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _broken: bool = field(init=False, default=False)

    @property
    def is_full(self) -> bool:
        """Whether a frame has to wait for room first."""
        return self._unsent >= _OUTBOX_SIZE and not self._broken

    async def room(self) -> None:
        """Wait until there may be room."""
        await self._room.park()

    def put(self, frame: bytes) -> None:
        """Send a frame, or queue what the socket does not take now. Nothing happens when it takes none any more."""
        if self._broken:
            return
        sent = 0
        if not self._unsent:
            with suppress(trio.BrokenResourceError):  # the task below meets it too, and is the one that tells
                sent = self._bytes.send_nowait(frame)
        if sent < len(frame):
            self._waiting.append(memoryview(frame)[sent:])
            self._unsent += len(frame) - sent
            self._work.unpark_all()

    async def run(self) -> None:
        """Send what is queued, for ever. Raises `trio.BrokenResourceError` when the connection takes no more."""
        while True:
            while self._waiting:
                batch = b"".join(self._waiting)
                self._waiting.clear()
                await self._bytes.send(batch)
                self._unsent -= len(batch)
                self._room.unpark_all()
            await self._work.park()

    def give_up(self) -> None:
        """The connection takes no more: nobody has to wait for room."""
        self._broken = True
        self._waiting.clear()
        self._room.unpark_all()
