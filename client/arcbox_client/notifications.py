"""What the agent says without having been asked."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
from attrs import define, field
from google.protobuf.message import DecodeError

from arcbox_client.errors import NotificationsMissedError, ProtocolViolationError
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_client.errors import ConnectionLostError
    from arcbox_protocol import Frame

Notification = arcbox_v1.PortBindingsChanged | arcbox_v1.PortBindingsRemoved

_MESSAGES: dict[MessageType, type[Notification]] = {
    MessageType.PortBindingsChanged: arcbox_v1.PortBindingsChanged,
    MessageType.PortBindingsRemoved: arcbox_v1.PortBindingsRemoved,
}

_BUFFER = 1024
"""Notifications kept for whoever takes them later; then the oldest go."""


@define(eq=False)
class Notifications:
    """The notifications of one connection, as an async iterator: `async for change in client.notifications`.

    Each goes to one consumer. Up to 1024 wait; when more come, the oldest are dropped, and the consumer is told by
    `NotificationsMissedError`, after which it can go on iterating. The iteration ends with `ConnectionLostError`.
    """

    _waiting: deque[Notification] = field(init=False, factory=deque)
    _missed: int = field(init=False, default=0)
    _arrival: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _error: ConnectionLostError | None = field(init=False, default=None)

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> Notification:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._error is not None:
                raise self._error
            await self._arrival.park()
        if self._missed:
            missed, self._missed = self._missed, 0
            raise NotificationsMissedError(missed)
        return self._waiting.popleft()

    def deliver(self, notification: Notification) -> None:
        """Keep one more. For the connection."""
        if len(self._waiting) == _BUFFER:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(notification)
        self._arrival.unpark()

    def lose(self, error: ConnectionLostError) -> None:
        """Nothing more will come. For the connection."""
        self._error = error
        self._arrival.unpark_all()


def parse_notification(frame: Frame) -> Notification:
    """The notification in a frame whose type is one. Raises `ProtocolViolationError`."""
    message_type = MessageType(frame.type)
    try:
        return _MESSAGES[message_type].FromString(frame.payload)
    except DecodeError as error:
        raise ProtocolViolationError(f"a {message_type.name} that does not parse: {error}") from error
