"""The way out of a connection: whole frames, one after the other, whoever is cancelled meanwhile."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from attrs import define, field

if TYPE_CHECKING:
    from arcbox_client._transport import Transport

_ROOM = 1024 * 1024
"""Bytes that may wait for an agent that does not read; whoever has more to send waits until they are gone."""


@define(eq=False)
class Outbox:
    """Frames on their way to the agent.

    A frame goes to the socket at once where that takes it; what is left over goes with a task of its own. So a request
    that is cancelled never leaves half a frame behind, and the connection stays usable.
    """

    _transport: Transport
    _waiting: list[memoryview] = field(init=False, factory=list)
    _unsent: int = field(init=False, default=0)
    """Bytes that wait or are being sent: as long as there are any, no frame may go to the socket directly."""

    _work: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _room: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _broken: bool = field(init=False, default=False)

    @property
    def is_full(self) -> bool:
        """Whether a frame has to wait for room first."""
        return self._unsent >= _ROOM and not self._broken

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
                sent = self._transport.send_nowait(frame)
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
                await self._transport.send(batch)
                self._unsent -= len(batch)
                self._room.unpark_all()
            await self._work.park()

    def give_up(self) -> None:
        """The connection takes no more: nobody has to wait for room."""
        self._broken = True
        self._waiting.clear()
        self._room.unpark_all()
