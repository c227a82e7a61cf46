"""One agent per data directory: a lock on a file in it, which ends with the agent that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.errors import TimedOutError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE: Final = 5.0
"""Seconds that the directory's storage has to answer."""


@define(eq=False)
class DataDirectory:
    """A directory that is one agent's, as long as that runs: flock(2)."""

    path: Path
    _file: int | None = field(init=False, default=None)
    """The locked file, opened."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(1))

    @property
    def claimed(self) -> bool:
        return self._file is not None

    async def claim(self, *, make: bool) -> None:
        """Have it for this agent. A directory that is not there is made with `make`, and else nobody's.

        Raises:
            UnavailableError: another agent has it.
            TimedOutError: its storage does not answer.
            OSError: it can't be used.
        """
        with trio.move_on_after(_PATIENCE):
            await trio.to_thread.run_sync(self._claim, make, limiter=self._limiter, abandon_on_cancel=True)
            return
        raise TimedOutError(f"the data directory {self.path} did not answer within {_PATIENCE:.0f} seconds")

    def release(self) -> None:
        """Leave it to the next agent."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _claim(self, make: bool) -> None:  # noqa: FBT001  called by a thread, without names
        if self.claimed or not (make or self.path.exists()):
            return
        self.path.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            if not isinstance(error, BlockingIOError):
                raise
            raise UnavailableError(
                f"another agent, process {holder}, has the sandboxes in {self.path}: one agent per data directory"
            ) from None
        with suppress(OSError):  # only for people, and the disk may be full
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file
