"""The streams of one connection: their way back to the peer, and the input that finds its way to them.

Opening, feeding and closing one costs the same however many there are.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_handlers import CommandError
from arcbox_protocol import Frame, encode_frame, encode_header
from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from arcbox_agent.writer import FrameWriter
    from arcbox_protocol import Buffer, MessageType

_MOST_INPUT_WAITING: Final = 1024 * 1024
"""Bytes of input that wait for a stream before they hold up its connection."""

_FRAME_OVERHEAD: Final = 256
"""Bytes that a frame takes beside its payload: a flood of tiny ones is bounded, too."""

_MOST_QUIET: Final = 64
"""Trace ids to remember for which dropped input is not logged (again)."""


@define(eq=False)
class Inputs(trio.abc.ReceiveChannel[Frame]):
    """The input that waits for one stream, in order."""

    _send: trio.MemorySendChannel[Frame] = field(init=False)
    _receive: trio.MemoryReceiveChannel[Frame] = field(init=False)
    _waiting: int = field(init=False, default=0)
    """Bytes."""

    _room: trio.Event = field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Frame](math.inf)

    def put_nowait(self, frame: Frame) -> bool:
        """Give the stream a frame, if there is room: at most `_MOST_INPUT_WAITING` bytes wait, or a single frame.

        Returns:
            False when there is none. A stream that has ended has room for everything, and keeps nothing.
        """
        size = _size(frame)
        if self._waiting and self._waiting + size > _MOST_INPUT_WAITING:
            return False
        with suppress(trio.BrokenResourceError):  # it has ended
            self._send.send_nowait(frame)
            self._waiting += size
        return True

    async def put(self, frame: Frame) -> None:
        """Give the stream a frame as soon as there is room."""
        while not self.put_nowait(frame):
            self._room = trio.Event()
            await self._room.wait()

    async def receive(self) -> Frame:
        """The next frame of input."""
        frame = await self._receive.receive()
        self._waiting -= _size(frame)
        self._room.set()
        return frame

    async def aclose(self) -> None:
        """Take no more."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Take no more."""
        self._receive.close()
        self._waiting = 0
        self._room.set()


def _size(frame: Frame) -> int:
    return len(frame.payload) + _FRAME_OVERHEAD


@define(eq=False)
class OpenStream:
    """One running stream: the `handlers.ReplyStream` of its command."""

    _writer: FrameWriter
    _reply_type: int
    trace_id: str
    accepts: frozenset[MessageType]
    _end_type: int | None
    inputs: Inputs = field(init=False, factory=Inputs)
    ready: trio.Event = field(init=False, factory=trio.Event)
    """Set by `started`."""

    def started(self) -> None:
        """Let the requests behind this one be carried out."""
        self.ready.set()

    async def send(self, message: Message) -> None:
        """Send one reply."""
        await self._writer.write(encode_frame(self._reply_type, self.trace_id, message.SerializeToString()))

    async def send_payload(self, *parts: Buffer) -> None:
        """Send one reply whose payload is these parts, uncopied."""
        header = encode_header(self._reply_type, self.trace_id, sum(map(len, parts)))
        await self._writer.write(header, *parts)

    async def notify(self, message_type: MessageType, message: Message) -> None:
        """Send a frame of another type, with an empty trace id."""
        await self._writer.write(encode_frame(message_type, "", message.SerializeToString()))

    async def end(self) -> None:
        """Send the empty frame that ends the stream."""
        if self._end_type is None:
            raise ValueError("the replies of this stream say themselves which is the last")
        await self._writer.write(encode_frame(self._end_type, self.trace_id, b""))


@define(eq=False)
class Streams:
    """The streams that run on one connection now."""

    _writer: FrameWriter
    _most: int
    _count: int = field(init=False, default=0)
    _named: dict[str, OpenStream] = field(init=False, factory=dict)
    _takers: dict[int, set[OpenStream]] = field(init=False, factory=lambda: defaultdict(set))
    """Who takes input of a type."""

    _quiet: deque[str] = field(init=False, factory=lambda: deque(maxlen=_MOST_QUIET))

    def open(
        self, reply_type: int, trace_id: str, accepts: frozenset[MessageType], end_type: int | None = None
    ) -> OpenStream:
        """Begin a stream, to which input finds its way from now on.

        Raises:
            CommandError: 409, a stream with that trace id is running: their frames could not be told apart; 503, too
                many streams are running.
        """
        if trace_id in self._named:
            raise CommandError(ErrorCode.CONFLICT, f"a stream with trace id {trace_id!r} is running on this connection")
        if self._count >= self._most:
            raise CommandError(ErrorCode.UNAVAILABLE, f"all {self._most} streams of this connection are in use")
        stream = OpenStream(self._writer, reply_type, trace_id, accepts, end_type)
        self._count += 1
        if trace_id:
            self._named[trace_id] = stream
        for message_type in accepts:
            self._takers[message_type].add(stream)
        if trace_id in self._quiet:
            self._quiet.remove(trace_id)
        return stream

    def close(self, stream: OpenStream) -> None:
        """End a stream; what waits to be its input is dropped."""
        self._count -= 1
        self._named.pop(stream.trace_id, None)
        for message_type in stream.accepts:
            self._takers[message_type].discard(stream)
        stream.inputs.close()

    def has(self, trace_id: str) -> bool:
        """Whether a stream with that trace id runs; never for an empty one, which is no name."""
        return trace_id in self._named

    def recipient(self, frame: Frame) -> OpenStream | None:
        """The stream that a frame of input is for: the one with its trace id; if that is empty, the only taker.

        A name that no stream has now may be that of one that has ended: its input is for nobody else.
        """
        if frame.trace_id:
            stream = self._named.get(frame.trace_id)
            return stream if stream is not None and frame.type in stream.accepts else None
        takers = self._takers.get(frame.type, ())
        return next(iter(takers)) if len(takers) == 1 else None

    def note_refused(self, trace_id: str) -> None:
        """A stream was answered with an Error: its input is dropped, and that is no news."""
        if trace_id not in self._quiet:
            self._quiet.append(trace_id)

    def is_drop_notable(self, frame: Frame) -> bool:
        """Whether to log that this frame of input is dropped: once for each trace id."""
        if not frame.payload or frame.trace_id in self._quiet:  # a late end of stdin loses nothing
            return False
        self._quiet.append(frame.trace_id)
        return True
