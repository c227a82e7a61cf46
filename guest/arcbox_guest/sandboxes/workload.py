"""A process that counts as running in its sandbox."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.sandboxes.model import SIGNALLED, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_guest.sandboxes.driver import OutputStream, Process
    from arcbox_guest.sandboxes.model import TerminalSize

log = logging.getLogger(__name__)

NOT_STARTED: Final = 126
"""Stands for the exit code of a process that could not be started; shells and docker say the same."""

KILLED: Final = SIGNALLED + 9
"""Stands for the exit code of a process whose end nobody saw: it was killed."""


@frozen
class End:
    """How a process ended."""

    exit_code: int
    reason: Reason | None = None
    """Why it was killed; None where it was not, or by whom nobody knows."""

    error: str = ""
    """Why it was killed or could not be started, for people."""


@define(eq=False)
class Workload:
    """From its admission to its end, which is told once."""

    _on_end: Callable[[End], None]
    _ended: bool = field(init=False, default=False)

    def end(self, end: End) -> None:
        """Count as running no more; only the first time counts."""
        if not self._ended:
            self._ended = True
            self._on_end(end)


@define(eq=False)
class TrackedProcess:
    """A driver's process, whose workload has ended before anybody who waits for it knows."""

    _process: Process
    _workload: Workload
    _time_limit: float
    """Seconds until it is killed; 0 is never."""

    _explain: Callable[[], End | None]
    """Called when it has ended by SIGKILL: why, if that can be found out."""

    _timed_out: bool = field(init=False, default=False)

    @property
    def stdout(self) -> OutputStream:
        return self._process.stdout

    @property
    def stderr(self) -> OutputStream | None:
        return self._process.stderr

    async def send_stdin(self, data: bytes) -> None:
        await self._process.send_stdin(data)

    async def close_stdin(self) -> None:
        await self._process.close_stdin()

    def resize(self, size: TerminalSize) -> None:
        self._process.resize(size)

    @property
    def failure(self) -> str:
        return self._process.failure

    async def wait(self) -> int:
        exit_code = await self._process.wait()
        self._workload.end(self._end(exit_code))
        return exit_code

    async def kill(self) -> None:
        await self._process.kill()

    async def watch(self) -> None:
        """See its end when nobody else does: who reads the output may be slow. Kill it when its time is up."""
        try:
            with trio.move_on_after(self._time_limit or math.inf):
                await self.wait()
                return
            self._timed_out = True
            await self.kill()
            await self.wait()
        except Exception:
            log.exception("process can't be watched")

    def _end(self, exit_code: int) -> End:
        if exit_code != KILLED:
            return End(exit_code, error=self.failure)
        if self._timed_out:
            return End(exit_code, Reason.TIMEOUT, f"{Reason.TIMEOUT}: it was killed after {self._time_limit:g} s")
        return self._explain() or End(exit_code)
