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
"""Most processes write little: the buffer grows by this factor whenever a read has filled it."""

_UNINTERRUPTED: Final = 16
"""Reads that need not wait, after which other tasks get their turn."""

_END_OF_FILE: Final = b"\x04"
"""^D, for terminals where VEOF is disabled."""

_LINE_IS_EMPTY_AFTER: Final = b"\n\r\x03\x04\x15\x1a\x1c"
"""Last bytes of input after which a terminal in canonical mode has no half a line: ends of lines, ^D, ^U, signals."""


def enlarge(pipe: int) -> None:
    """Have a pipe hold `PIECE` bytes. The kernel grants that to a user for 64 MiB in all: more is slower, not wrong."""
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIECE)


@define(eq=False)
class StreamEnd:
    """An open file of the agent's own. Its flag O_NONBLOCK is not seen by the process: that has the other end."""

    fd: int

    def __attrs_post_init__(self) -> None:
        os.set_blocking(self.fd, False)

    async def send(self, data: bytes | memoryview) -> None:
        """Write it all.

        Raises:
            trio.BrokenResourceError: nobody will read it.
        """
        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            if self.fd < 0:
                raise trio.BrokenResourceError("its stdin is closed")
            try:
                left = left[os.write(self.fd, left) :]
            except BlockingIOError:
                await self._wait_writable()
            except OSError as error:
                raise trio.BrokenResourceError("it has closed its stdin") from error

    def close(self) -> None:
        """Whoever waits for it then gets a ClosedResourceError."""
        if self.fd >= 0:
            trio.lowlevel.notify_closing(self.fd)
            os.close(self.fd)
            self.fd = -1

    async def _wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self.fd)
        except trio.ClosedResourceError:
            raise trio.BrokenResourceError("its stdin is closed") from None


@define(eq=False)
class PipeOutput:
    """What a process writes."""

    _end: StreamEnd
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

    def unread(self) -> int:
        if self._end.fd < 0:
            return 0
        (count,) = struct.unpack("i", fcntl.ioctl(self._end.fd, termios.FIONREAD, bytes(4)))
        return int(count)

    def _received(self, count: int) -> memoryview:
        piece = memoryview(self._buffer)[:count]
        if count == len(self._buffer) < PIECE:
            self._buffer = bytearray(min(_GROWTH * count, PIECE))
        return piece


@define(eq=False)
class TerminalInput:
    """What is typed on a terminal, by its master."""

    _master: StreamEnd
    _half_a_line: bool = field(init=False, default=False)
    _ended: bool = field(init=False, default=False)

    async def send(self, data: bytes) -> None:
        """Type it.

        Raises:
            trio.BrokenResourceError: nobody has the terminal open any more.
        """
        if data:
            self._half_a_line = data[-1] not in _LINE_IS_EMPTY_AFTER
        await self._master.send(data)

    async def end(self) -> None:
        """Let the process see the end of its input. Again does nothing.

        In canonical mode VEOF is the end of file on an empty line only: after half a line, the first one has that read,
        and it takes another (termios(3)). In raw mode it is a byte as any other, and programs expect it once.
        """
        if self._ended or self._master.fd < 0:
            await trio.lowlevel.checkpoint()
            return
        self._ended = True
        _, _, _, local_modes, _, _, characters = termios.tcgetattr(self._master.fd)
        character = characters[termios.VEOF]
        if not isinstance(character, bytes) or character == b"\0":
            character = _END_OF_FILE
        twice = self._half_a_line and local_modes & termios.ICANON
        with suppress(trio.BrokenResourceError):  # nobody is left who could see it
            await self._master.send(character * 2 if twice else character)

    def resize(self, size: TerminalSize) -> None:
        """Set the size; whoever has it as controlling terminal is told by SIGWINCH."""
        if self._master.fd >= 0:
            fcntl.ioctl(self._master.fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
