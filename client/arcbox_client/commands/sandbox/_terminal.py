"""The terminal that arcboxctl runs on, lent to a process in a sandbox."""

from __future__ import annotations

import os
import signal
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from arcbox_client.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from arcbox_client.sessions import ExecSession


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
