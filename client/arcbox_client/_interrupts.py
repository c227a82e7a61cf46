"""Ctrl-C: at whatever moment it comes, `arcboxctl` ends with 130, and without a traceback.

An exception, as which Python has it come, may hit an import, Trio's own first steps, or a destructor, and none of
these can cope with it. So it is none: it cancels what the agent was asked for, and before and after that it ends this
process on the spot.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    import trio

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells say it."""


def end_at_ctrl_c() -> None:
    """Have Ctrl-C end this process from now on, unless it is ignored: by nohup, say, or in a script's background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def ctrl_c_raises() -> Iterator[None]:
    """Have it raise KeyboardInterrupt after all, for what is prepared for that and waits for a person."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


async def cancel_at_ctrl_c(scope: trio.CancelScope) -> None:
    """Have Ctrl-C cancel a scope, once; a second one ends this process."""
    import trio  # noqa: PLC0415  this module is loaded first of all, and Trio takes its time

    if signal.getsignal(signal.SIGINT) is not _end:
        return
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        await anext(signals)
        scope.cancel()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
