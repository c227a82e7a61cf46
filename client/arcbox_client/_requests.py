"""How requests of all kinds are carried out: deadlines, replies checked and parsed, streams."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from attrs import define, evolve, frozen
from google.protobuf.message import DecodeError, Message

from arcbox_client.errors import ProtocolViolationError, TimedOutError, request_failed
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType, arcbox_v1, describe_type, sandbox_v1
from arcbox_protocol.errors import InvalidPayloadError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Self

    from arcbox_client._multiplexer import Multiplexer, StreamInbox
    from arcbox_protocol import Buffer, Frame

ReplyT = TypeVar("ReplyT", bound=Message)

_SLOW_TIMEOUT = 300.0
"""Seconds for requests that wait for something slow in the guest."""

_DATA_TAG = 0x0A
"""Field 1, length-delimited: the data of MmapReadFileResponse and FileChunk."""

_LONGEST_VARINT = 10


@frozen(eq=False, kw_only=True)
class Requests:
    """What the methods of `AgentClient` are made of."""

    _multiplexer: Multiplexer
    _timeout: float
    _slow_timeout: float = _SLOW_TIMEOUT
    _connected: Callable[[], AbstractAsyncContextManager[Multiplexer]] | None = None
    """Connects once more, for one stream; None where streams share the multiplexer."""

    def within(self, seconds: float) -> Self:
        """The same client with another deadline for each request: `await client.within(2).ping()`.

        It holds for slow requests too; `math.inf` is no deadline.
        """
        return evolve(self, timeout=seconds, slow_timeout=seconds)

    async def _call(
        self, request: MessageType, message: Message | None, reply: type[ReplyT], *, slow: bool = False
    ) -> ReplyT:
        return parse_reply(await self._exchange(request, message, slow=slow), request, reply)

    async def _command(self, request: MessageType, message: Message, *, slow: bool = False) -> None:
        """For requests whose reply is empty."""
        check_reply(await self._exchange(request, message, slow=slow), request)

    async def _exchange(self, request: MessageType, message: Message | None, *, slow: bool = False) -> Frame:
        return await self._exchange_over(self._multiplexer, request, message, slow=slow)

    async def _exchange_over(
        self, multiplexer: Multiplexer, request: MessageType, message: Message | None, *, slow: bool = False
    ) -> Frame:
        payload = b"" if message is None else message.SerializeToString()
        trace_id = multiplexer.new_trace_id()
        seconds = self._slow_timeout if slow else self._timeout
        if seconds == math.inf:
            return await multiplexer.request(request, trace_id, payload)
        with trio.move_on_after(seconds):
            return await multiplexer.request(request, trace_id, payload)
        raise TimedOutError(f"{request.name}: no reply within {seconds:g} s (trace id {trace_id})")

    @asynccontextmanager
    async def _stream(
        self, request: MessageType, message: Message, reply: type[ReplyT]
    ) -> AsyncIterator[tuple[Replies[ReplyT], Multiplexer, str]]:
        """Begin a stream: its replies, and the multiplexer and trace id for its input."""
        payload = message.SerializeToString()
        async with self._connected() if self._connected else nullcontext(self._multiplexer) as multiplexer:
            trace_id = multiplexer.new_trace_id()
            with multiplexer.stream(trace_id) as inbox:
                await multiplexer.send(request, trace_id, payload)
                yield Replies(inbox, request, reply), multiplexer, trace_id


def arguments(cmd: Sequence[str]) -> list[str]:
    """A command and its arguments, checked: a text would be taken for a list of characters.

    Raises:
        TypeError: it is one str, or has anything but str in it.
    """
    if isinstance(cmd, (str, bytes)):
        raise TypeError(f"a command is a list of arguments, not a text: {[cmd]!r} or shlex.split({cmd!r})")
    for argument in cmd:
        if not isinstance(argument, str):
            raise TypeError(f"an argument is a str, not {argument!r}")
    return list(cmd)


def check_reply(frame: Frame, request: MessageType) -> None:
    """Make sure that a frame is the reply to such a request.

    Raises:
        RequestFailedError: it is an Error frame.
        ProtocolViolationError: it is something else.
    """
    if frame.type == EXCHANGES[request].reply:
        return
    if frame.type != MessageType.Error:
        raise ProtocolViolationError(f"{request.name} was answered with {describe_type(frame.type)}")
    try:
        reply = ErrorReply.decode(frame.payload)
    except InvalidPayloadError as error:
        raise ProtocolViolationError(f"{request.name} was answered with a broken Error frame: {error}") from error
    raise request_failed(reply, request, frame.trace_id)


def parse_reply(frame: Frame, request: MessageType, reply: type[ReplyT]) -> ReplyT:
    """The message in the reply to such a request. Raises as `check_reply` does."""
    check_reply(frame, request)
    try:
        return reply.FromString(frame.payload)
    except DecodeError as error:
        raise ProtocolViolationError(f"{request.name} was answered with what does not parse: {error}") from error


@define(eq=False)
class Replies(Generic[ReplyT]):
    """The replies to a request that has many."""

    _inbox: StreamInbox
    _request: MessageType
    _reply: type[ReplyT]
    _last: Frame | None = None

    async def next(self) -> ReplyT:
        """The next reply. What ended the stream is raised again by every later call.

        Raises:
            trio.EndOfChannel: the agent ended the stream.
            RequestFailedError: the agent ended the stream with an error.
            ConnectionLostError: the connection ended before the stream did.
            ProtocolViolationError: the agent sent something else.
        """
        frame = await self.next_frame()
        try:
            return parse_reply(frame, self._request, self._reply)
        except ProtocolViolationError:
            self._last = frame
            raise

    async def next_frame(self) -> Frame:
        """The frame of the next reply, for payloads that are not for protobuf. Raises as `next` does."""
        frame = self._last or await self._inbox.next()
        if frame.type == EXCHANGES[self._request].end:
            self._last = frame
            raise trio.EndOfChannel
        try:
            check_reply(frame, self._request)
        except Exception:
            self._last = frame
            raise
        return frame


def parse_file_reply(payload: bytes) -> bytes:
    """The bytes of the file in a MmapReadFileResponse, read by hand: protobuf would copy its 64 MiB twice more.

    An agent fills up with zeros what a file lost while it was being sent; `bytes_read` says how much is real.

    Raises:
        ProtocolViolationError: the payload is no MmapReadFileResponse.
    """
    start, end = _data_field(payload)
    try:
        rest = arcbox_v1.MmapReadFileResponse.FromString(payload[end:])
    except DecodeError as error:
        raise ProtocolViolationError(f"MmapReadFileRequest was answered with what does not parse: {error}") from error
    if rest.data:  # legal protobuf, though nobody sends it: the last field of a name counts
        return rest.data[: rest.bytes_read]
    return payload[start : min(end, start + rest.bytes_read)]


def parse_chunk(payload: bytes) -> tuple[bytes, bool]:
    """The bytes in a FileChunk, read by hand for the same reason, and whether it is the last one."""
    start, end = _data_field(payload)
    try:
        rest = sandbox_v1.FileChunk.FromString(payload[end:])
    except DecodeError as error:
        raise ProtocolViolationError(f"a FileChunk that does not parse: {error}") from error
    return rest.data or payload[start:end], rest.done


def encode_chunk(data: Buffer) -> bytes:
    """A FileChunk that is not the last one, written by hand: its data is copied once."""
    size, varint = len(data), bytearray()
    while size >= 0x80:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    return b"".join((bytes((_DATA_TAG, *varint, size)), data))


def _data_field(payload: bytes) -> tuple[int, int]:
    """Where the data lies; an empty range at the start where it is not the first field, or not whole."""
    if not payload or payload[0] != _DATA_TAG:
        return 0, 0
    size = 0
    for index, byte in enumerate(payload[1 : 1 + _LONGEST_VARINT]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            start = index + 2
            return (start, start + size) if start + size <= len(payload) else (0, 0)
    return 0, 0
