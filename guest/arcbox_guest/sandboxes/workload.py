"""A process that counts as running in its sandbox."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.sandboxes.model import SIGNALLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_guest.sandboxes.driver import OutputStream, Process
    from arcbox_guest.sandboxes.model import TerminalSize

log = logging.getLogger(__name__)

NOT_STARTED: Final = 126
"""Stands for the exit code of a process that could not be started; shells and docker say the same."""

KILLED: Final = SIGNALLED + 9
"""Stands for the exit code of a process whose end nobody saw: it was killed."""


@define(eq=False)
class Workload:
    """From its admission to its end, which is told once, with the exit code."""

    _on_end: Callable[[int], None]
    _ended: bool = field(init=False, default=False)

    def end(self, exit_code: int) -> None:
        """Count as running no more; only the first time counts."""
        if not self._ended:
            self._ended = True
            self._on_end(exit_code)


@define(eq=False)
class TrackedProcess:
    """A driver's process, whose workload has ended before anybody who waits for it knows."""

    _process: Process
    _workload: Workload

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

    async def wait(self) -> int:
        exit_code = await self._process.wait()
        self._workload.end(exit_code)
        return exit_code

    async def kill(self) -> None:
        await self._process.kill()

    async def watch(self, time_limit: float) -> None:
        """See its end when nobody else does: who reads the output may be slow. Kill it when its time is up.

        Args:
            time_limit: seconds; 0 is never.
        """
        try:
            with trio.move_on_after(time_limit or math.inf):
                await self.wait()
                return
            await self.kill()
            await self.wait()
        except Exception:
            log.exception("process can't be watched")
