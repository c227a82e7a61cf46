"""The last part of what a command wrote."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from guest.sandboxes.driver import Output

DEFAULT_LIMIT: Final = 256 * 1024
"""Bytes."""

_PIECE: Final = 4096
"""Bytes below which what was written is joined to what came before: each piece costs memory of its own."""


@define(eq=False)
class OutputLog:
    """Keeps as much of the newest output as fits, and drops the oldest."""

    _limit: int = DEFAULT_LIMIT
    _pieces: deque[bytes] = field(init=False, factory=deque)
    _size: int = field(init=False, default=0)
    dropped: int = field(init=False, default=0)
    """Bytes that were written before those that are kept."""

    def write(self, data: bytes | memoryview) -> None:
        """Add to the end."""
        if self._pieces and len(self._pieces[-1]) + len(data) <= _PIECE:
            self._pieces[-1] += data
        else:
            self._pieces.append(bytes(data))
        self._size += len(data)
        self._drop(self._size - self._limit)

    def read(self) -> bytes:
        """All that is kept."""
        return b"".join(self._pieces)

    async def copy(self, output: Output) -> None:
        """Write all that comes from a process, until its end."""
        while data := await output.receive():
            self.write(data)
            await trio.lowlevel.checkpoint()  # a command that never pauses must not keep everybody else waiting

    def _drop(self, excess: int) -> None:
        while excess > 0:
            oldest = self._pieces.popleft()
            if len(oldest) > excess:
                self._pieces.appendleft(oldest[excess:])
            count = min(excess, len(oldest))
            excess -= count
            self._size -= count
            self.dropped += count
