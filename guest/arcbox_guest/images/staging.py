"""Directories in which images are made, and what agents that were killed have left in them.

Whoever makes something holds a shared flock(2) on their parent; who sweeps holds it alone. All of it blocks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from arcbox_guest.child import PidFd

_KILLED: Final = 5.0
"""Seconds to wait for the end of a process that was killed."""


@frozen
class Staging:
    """A directory in which one image is made, by programs that have it as their working directory."""

    path: Path
    _lock: int

    @classmethod
    def make(cls, parent: Path) -> Staging:
        """A new one, to be removed."""
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return cls(Path(tempfile.mkdtemp(dir=parent)), lock)
        except BaseException:
            os.close(lock)
            raise

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep(parent: Path) -> None:
    """Remove what was being made, and end the programs that do it still. Nothing happens while anybody makes something.

    A parent that is not there has nothing in it.
    """
    try:
        lock = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if left := list(parent.iterdir()):
            _kill_inside(parent)
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _kill_inside(parent: Path) -> None:
    """Kill the processes whose working directory is below one, and wait until they are gone."""
    inside = f"{parent.resolve()}/"
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if str((path / "cwd").readlink()).startswith(inside):
                with PidFd.opened(int(path.name)) as process:
                    if str((path / "cwd").readlink()).startswith(inside):  # else another one has got the number
                        process.signal(signal.SIGKILL)
                        process.wait_in_thread(_KILLED)
