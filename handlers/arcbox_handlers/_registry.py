"""Which command answers which request type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from arcbox_protocol import EXCHANGES, LATER_REQUESTS, MessageType, describe_type
from arcbox_protocol.errors import ErrorCode, InvalidPayloadError, RemoteProtocolError

from ._command import QuickCommand, StreamCommand, UnaryCommand
from ._errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.message import Message

    from arcbox_protocol import Exchange

    from ._command import AnyCommand


@frozen
class Route:
    """A request type that has a command."""

    exchange: Exchange
    command: AnyCommand
    reply_type: int = field(init=False)
    """A plain number: packing an enum's member into a frame takes three times as long."""

    quick: type[QuickCommand[Any]] | None = field(init=False)
    """The command if it is a quick one: asked once here, not once per frame. So are the next two."""

    stream: type[StreamCommand[Any]] | None = field(init=False)
    unary: type[UnaryCommand[Any]] | None = field(init=False)

    @reply_type.default
    def _reply_type(self) -> int:
        if self.exchange.reply is None:
            raise ValueError(f"{self.exchange.request.name} is input for a stream, it has no command of its own")
        return int(self.exchange.reply)

    @quick.default
    def _quick(self) -> type[QuickCommand[Any]] | None:
        return self.command if issubclass(self.command, QuickCommand) else None

    @stream.default
    def _stream(self) -> type[StreamCommand[Any]] | None:
        return self.command if issubclass(self.command, StreamCommand) else None

    @unary.default
    def _unary(self) -> type[UnaryCommand[Any]] | None:
        return self.command if issubclass(self.command, UnaryCommand) else None

    def parse(self, payload: bytes) -> Message | None:
        """The request message in a payload; None for a type whose payload is ignored.

        Raises:
            InvalidPayloadError: the payload is not that message.
        """
        message_class = self.exchange.request_message
        if message_class is None:
            return None
        try:
            return message_class.FromString(payload)
        except Exception as error:  # protobuf's DecodeError: importing it by name would load a module more
            raise InvalidPayloadError(f"invalid request: {self.exchange.request.name}: {error}") from error


class Registry:
    """The commands that an agent knows, by request type. Immutable."""

    def __init__(self, commands: Iterable[AnyCommand]) -> None:
        """Register each command class for the type it `handles`.

        Raises:
            ValueError: a type that is no request, or has no reply; or two commands for one type.
        """
        routes: dict[int, Route] = {}
        for command in commands:
            exchange = EXCHANGES.get(command.handles)
            if exchange is None:
                raise ValueError(f"{command.__name__}: {describe_type(command.handles)} is not a request")
            if command.handles in routes:
                raise ValueError(f"{command.__name__}: {command.handles.name} has a command already")
            routes[command.handles] = Route(exchange, command)
        self.routes: Mapping[int, Route] = routes

    def why_unroutable(self, message_type: int) -> Exception:
        """The error that answers a frame whose type is in no route."""
        exchange = EXCHANGES.get(message_type)
        name = LATER_REQUESTS.get(message_type) if exchange is None else exchange.request.name
        if name is not None:
            return CommandError(ErrorCode.NOT_SUPPORTED, f"{name} is not supported by this agent")
        known = message_type in MessageType.__members__.values()
        what = "is not a request" if known else "is unknown"
        return RemoteProtocolError(f"message type {describe_type(message_type)} {what}")
