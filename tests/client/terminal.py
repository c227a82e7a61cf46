"""A terminal with a command on it, and somebody who types."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence


@define(eq=False)
class Terminal:
    """A terminal with a command on it."""

    process: subprocess.Popen[bytes]
    _master: int
    _slave: int
    shown: bytes = field(init=False, default=b"")

    @property
    def modes(self) -> list[int | list[bytes | int]]:
        return termios.tcgetattr(self._slave)

    @property
    def is_raw(self) -> bool:
        local = self.modes[3]
        assert isinstance(local, int)
        return not local & (termios.ICANON | termios.ECHO | termios.ISIG)

    async def until_shown(self, text: bytes, *, after: bytes = b"") -> None:
        while text not in self.shown.partition(after)[2] if after else text not in self.shown:
            await trio.lowlevel.wait_readable(self._master)
            self.shown += os.read(self._master, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        """As a terminal window does: whoever runs in front hears of it by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def exit_code(self) -> int:
        return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


@asynccontextmanager
async def on_a_terminal(
    command: Sequence[str], environment: Mapping[str, str], *, columns: int = 100, rows: int = 30
) -> AsyncIterator[Terminal]:
    """Run a command on a terminal; killed at the end, if it still runs."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    process = None
    try:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = subprocess.Popen(  # noqa: S603, ASYNC220  the command is our own; on a terminal, which Trio has no way for
            ["setsid", "--ctty", *command],  # noqa: S607  util-linux is everywhere
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        yield Terminal(process, master, slave)
    finally:
        if process is not None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)
