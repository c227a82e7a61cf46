"""The streams of one connection: their way back to the peer, and the input that finds its way to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_handlers import CommandError
from arcbox_protocol import Frame, encode_frame, encode_header
from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from arcbox_agent.writer import FrameWriter
    from arcbox_protocol import Buffer, MessageType

_INPUTS_WAITING = 1
"""Frames kept for a stream that does not take its input: more of them hold up the connection, not the memory."""


@define(eq=False)
class OpenStream:
    """One running stream: the `handlers.ReplyStream` of its command."""

    _writer: FrameWriter
    _reply_type: int
    trace_id: str
    accepts: frozenset[MessageType]
    inbox: trio.MemorySendChannel[Frame]
    inputs: trio.MemoryReceiveChannel[Frame]

    async def send(self, message: Message) -> None:
        """Send one reply."""
        await self._writer.write(encode_frame(self._reply_type, self.trace_id, message.SerializeToString()))

    async def send_payload(self, *parts: Buffer) -> None:
        """Send one reply whose payload is these parts, uncopied."""
        header = encode_header(self._reply_type, self.trace_id, sum(map(len, parts)))
        await self._writer.write(header, *parts)


@define(eq=False)
class Streams:
    """The streams that run on one connection now."""

    _writer: FrameWriter
    _open: list[OpenStream] = field(init=False, factory=list)

    def open(self, reply_type: int, trace_id: str, accepts: frozenset[MessageType]) -> OpenStream:
        """Begin a stream, to which input finds its way from now on.

        Raises:
            CommandError: 409, a stream with that trace id is running: their frames could not be told apart.
        """
        if self.has(trace_id):
            raise CommandError(ErrorCode.CONFLICT, f"a stream with trace id {trace_id!r} is running on this connection")
        inbox, inputs = trio.open_memory_channel[Frame](_INPUTS_WAITING)
        stream = OpenStream(self._writer, reply_type, trace_id, accepts, inbox, inputs)
        self._open.append(stream)
        return stream

    def close(self, stream: OpenStream) -> None:
        """End a stream; whoever waits to give it input gets `trio.BrokenResourceError`."""
        self._open.remove(stream)
        stream.inputs.close()

    def has(self, trace_id: str) -> bool:
        """Whether a stream with that trace id runs; never for an empty one, which is no name."""
        return trace_id != "" and any(stream.trace_id == trace_id for stream in self._open)

    def recipient(self, frame: Frame) -> OpenStream | None:
        """The stream that a frame of input is for: the one with its trace id, else the only one that takes input."""
        takers = [stream for stream in self._open if frame.type in stream.accepts]
        for stream in takers:
            if frame.trace_id and stream.trace_id == frame.trace_id:
                return stream
        return takers[0] if len(takers) == 1 else None
