"""Where replies wait for whoever asked: one reply, or the frames of a stream."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio
from attrs import define, field

if TYPE_CHECKING:
    from arcbox_client.errors import ConnectionLostError
    from arcbox_protocol import Frame

_ROOM = 1024 * 1024
"""Bytes of a stream that may wait for a slow consumer: after that, the connection is not read any further."""

_FRAME_OVERHEAD = 256
"""What a frame costs in memory besides its payload, so that empty frames are bounded too."""


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
        return self._size < _ROOM

    async def room(self) -> None:
        while self._size >= _ROOM and not self._closed:
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
        if self._size < _ROOM:
            self._room.unpark_all()
        return frame

    def close(self) -> None:
        """Nobody wants the rest."""
        self._closed = True
        self._frames.clear()
        self._room.unpark_all()
