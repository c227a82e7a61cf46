"""The agent's ends of what a process reads and writes: pipes, or the master of a terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.model import TerminalSize

PIECE: Final = 256 * 1024
"""Bytes that are read at once, and that a pipe holds where the kernel allows it."""

_FIRST_PIECE: Final = 4096
_GROWTH: Final = 8
"""Most processes write little, and many write nothing for long. What is read in one go grows with what there is."""

END_OF_FILE: Final = b"\x04"
"""What ends the input from a terminal: ^D."""

_UNINTERRUPTED: Final = 16
"""Reads that need not wait, after which others get their turn."""


def enlarge(pipe: int) -> None:
    """Have a pipe hold `PIECE` bytes. The kernel grants that to a user for 64 MiB in all: more is slower, not wrong."""
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIECE)


@define(eq=False)
class End:
    """An open file of the agent's own. Its flag O_NONBLOCK is not seen by the process: that has the other end."""

    fd: int

    def __attrs_post_init__(self) -> None:
        os.set_blocking(self.fd, False)

    def close(self) -> None:
        """Whoever waits for it then gets a ClosedResourceError."""
        if self.fd >= 0:
            trio.lowlevel.notify_closing(self.fd)
            os.close(self.fd)
            self.fd = -1


@define(eq=False)
class OutputStream:
    """What a process writes."""

    _end: End
    _buffer: bytearray = field(init=False, factory=lambda: bytearray(_FIRST_PIECE))
    _uninterrupted: int = field(init=False, default=0)

    async def receive(self) -> memoryview:
        # Cancelled, if at all, before something was read: no byte is lost by it.
        self._uninterrupted += 1
        if self._uninterrupted >= _UNINTERRUPTED:
            self._uninterrupted = 0
            await trio.lowlevel.checkpoint()
        while True:
            if self._end.fd < 0:
                raise trio.ClosedResourceError("the process is gone")
            try:
                return self._received(os.readv(self._end.fd, (self._buffer,)))
            except BlockingIOError:
                self._uninterrupted = 0
                await trio.lowlevel.wait_readable(self._end.fd)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return self._received(0)  # nobody has the terminal open any more

    def _received(self, count: int) -> memoryview:
        piece = memoryview(self._buffer)[:count]
        if count == len(self._buffer) < PIECE:
            self._buffer = bytearray(min(_GROWTH * count, PIECE))
        return piece

    def unread(self) -> int:
        if self._end.fd < 0:
            return 0
        (count,) = struct.unpack("i", fcntl.ioctl(self._end.fd, termios.FIONREAD, bytes(4)))
        return int(count)


@define(eq=False)
class Input:
    """What a process reads."""

    _end: End

    async def send(self, data: bytes | memoryview) -> None:
        """Write it all.

        Raises:
            trio.BrokenResourceError: nobody will read it.
        """
        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            if self._end.fd < 0:
                raise trio.BrokenResourceError("its stdin is closed")
            try:
                left = left[os.write(self._end.fd, left) :]
            except BlockingIOError:
                await self._wait()
            except OSError as error:
                raise trio.BrokenResourceError("it has closed its stdin") from error

    async def _wait(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._end.fd)
        except trio.ClosedResourceError:
            raise trio.BrokenResourceError("its stdin is closed") from None


def resize(terminal: int, size: TerminalSize) -> None:
    """Set the size of a terminal; whoever has it as controlling terminal is told by SIGWINCH."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
