"""Writes log lines to a file descriptor that may be closed or full, without stopping the agent."""

from __future__ import annotations

import os
import select
from typing import Final

_LONGEST_BLOCK: Final = 50
"""Milliseconds to block before dropping lines; 0 after that, until there is room. The event loop waits meanwhile."""


class LogOutput:
    """Writes whole lines to a descriptor that it does not own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._stalled = False
        self._cut = False

    def write(self, line: str) -> bool:
        """Write a line, if there is room for it.

        Returns:
            Whether it was written. A line that was cut off is ended before the next one begins.
        """
        start = "\n" if self._cut else ""
        data = f"{start}{line}\n".encode("utf-8", "backslashreplace")
        sent = 0
        try:
            while sent < len(data) and self._wait_for_room():
                # O_NONBLOCK would be set for everyone who shares standard error. A pipe with any room has this much.
                sent += os.write(self._descriptor, data[sent : sent + select.PIPE_BUF])
        except OSError:  # nobody is there to read it, and nowhere is left to say so
            pass
        written = sent == len(data)
        self._cut = not written and (self._cut or sent > 0)
        return written

    def _wait_for_room(self) -> bool:
        self._stalled = not self._room.poll(0 if self._stalled else _LONGEST_BLOCK)
        return not self._stalled
