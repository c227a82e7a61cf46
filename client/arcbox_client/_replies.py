"""Frames that answer a request, checked and parsed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from attrs import define
from google.protobuf.message import DecodeError, Message

from arcbox_client.errors import ProtocolViolationError, request_failed
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType, describe_type
from arcbox_protocol.errors import InvalidPayloadError

if TYPE_CHECKING:
    from arcbox_client._inbox import StreamInbox
    from arcbox_protocol import Frame

ReplyT = TypeVar("ReplyT", bound=Message)


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
class ReplyStream(Generic[ReplyT]):
    """The replies to a request that has many."""

    _inbox: StreamInbox
    _request: MessageType
    _reply: type[ReplyT]
    _last: Frame | None = None

    async def next(self) -> ReplyT:
        """The next reply. An error that ended the stream is raised again by every later call.

        Raises:
            RequestFailedError: the agent ended the stream with an error.
            ConnectionLostError: the connection ended before the stream did.
            ProtocolViolationError: the agent sent something else.
        """
        frame = self._last or await self._inbox.next()
        try:
            return parse_reply(frame, self._request, self._reply)
        except Exception:
            self._last = frame
            raise
