"""The terminal that arcboxctl runs on: lent to a process in a sandbox, and left without ending the process."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click
import trio
from attrs import define, field, frozen

from arcbox_client.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from arcbox_client.streams import ExecSession


@frozen
class RawTerminal:
    """A terminal that hands on every key as it is typed, and shows every byte as it comes."""

    descriptor: int
    _before: list[int | list[bytes | int]]

    def enter(self) -> None:
        tty.setraw(self.descriptor, termios.TCSANOW)  # what was typed already is not thrown away

    def restore(self) -> None:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(self.descriptor, termios.TCSANOW, self._before)


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[RawTerminal]:
    """Make a terminal raw, and what it was before at the end, however that comes about.

    Signals that end this process do so once the terminal is restored. One that was stopped finds it as its shell
    likes it: SIGCONT makes it raw again.
    """
    terminal = RawTerminal(descriptor, termios.tcgetattr(descriptor))

    def end(number: int, _frame: FrameType | None) -> None:
        terminal.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def go_on(_number: int, _frame: FrameType | None) -> None:
        with suppress(termios.error):
            terminal.enter()

    with _handled({signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGQUIT: end, signal.SIGCONT: go_on}):
        try:
            terminal.enter()
            yield terminal
        finally:
            terminal.restore()


@contextmanager
def _handled(handlers: dict[signal.Signals, signal._HANDLER]) -> Iterator[None]:
    """Handle signals, but for those that somebody wants ignored, such as nohup."""
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] == signal.SIG_DFL:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminal_size() -> tuple[int, int] | None:
    """Columns and rows of the terminal that is stdin, stdout or stderr; None if none of them is one."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            return size.columns, size.lines
    return None


async def follow_size(session: ExecSession) -> None:
    """Tell a process's terminal whenever this one changes its size."""
    with trio.open_signal_receiver(signal.SIGWINCH) as changes, suppress(AgentError):  # whoever reads meets it, too
        told = None
        while True:
            size = terminal_size()
            if size is not None and size != told:
                await session.resize(*size)
                told = size
            await anext(changes)


class KeySequence(click.ParamType[bytes]):
    """Keys with commas between them, each a character or ctrl-LETTER, as bytes; none if it is empty."""

    name = "keys"

    def convert(self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        return b"".join(self._key(key, param, ctx) for key in value.split(",")) if value else b""

    def _key(self, key: str, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        letter = key.lower().removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii():
            self.fail(f"{key!r} is no key: write a character or ctrl-LETTER", param, ctx)
        return bytes([ord(letter) & 0x1F]) if len(key) > 1 else key.encode()


@define
class DetachKeys:
    """Looks for a sequence of keys in what is typed. What may be its beginning is kept back until the next key."""

    _keys: bytes
    _kept: bytes = field(init=False, default=b"")

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What of it is for the process, and whether the sequence is complete: nothing after that is for it."""
        if not self._keys:
            return typed, False
        passed = bytearray()
        for key in typed:
            self._kept += bytes([key])
            while not self._keys.startswith(self._kept):
                passed.append(self._kept[0])
                self._kept = self._kept[1:]
            if self._kept == self._keys:
                self._kept = b""
                return bytes(passed), True
        return bytes(passed), False


def go_on_in_background(back_to_the_shell: Callable[[], None]) -> None:
    """Give the terminal back to the shell, and return in a copy of this process that has none.

    The agent kills what nobody is connected to, so somebody has to stay. The copy has the same connection, with all
    that waits on it, and Trio's loop goes on there: this process must leave both alone, and so ends on the spot.
    """
    sys.stdout.flush()
    settled, settle = os.pipe()
    copy = os.fork()
    if copy:
        os.close(settle)
        os.read(
            settled, 1
        )  # its end: where this process leads the session, the terminal takes all with it who are there
        back_to_the_shell()
        os.write(2, f"\ndetached: process {copy} of this machine keeps it running; to end it, end that\n".encode())
        os._exit(0)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    for descriptor in (nowhere, settled, settle):
        os.close(descriptor)
