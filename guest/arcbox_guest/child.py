"""A child process of the agent, in a session of its own, watched by its pidfd."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.sandboxes.model import SIGNALLED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_REAPING: Final = 5.0
"""Seconds in which a process that was killed must be gone. One that waits for a device is left to itself."""


@define(eq=False)
class PidFd:
    """A process, of whoever. Any number of tasks may wait for its end."""

    _fd: int
    _waiting: trio.Lock = field(init=False, factory=trio.Lock)

    @classmethod
    def open(cls, pid: int) -> PidFd:
        """Raises ProcessLookupError: there is no such process."""
        return cls(os.pidfd_open(pid))

    @classmethod
    @contextmanager
    def opened(cls, pid: int) -> Iterator[PidFd]:
        """One for a moment, in which nobody waits for it. Raises as `open` does."""
        process = cls.open(pid)
        try:
            yield process
        finally:
            process.discard()

    def ended(self) -> bool:
        """Whether the process has."""
        return self._fd < 0 or bool(_readable(self._fd))

    async def wait(self) -> None:
        """Wait for its end."""
        async with self._waiting:
            if not self.ended():
                await trio.lowlevel.wait_readable(self._fd)

    def wait_in_thread(self, patience: float) -> None:
        """Wait for its end, at most so many seconds. Blocks."""
        _readable(self._fd, patience)

    def reap(self) -> int | None:
        """Take the exit status of a process that has ended: its exit code, or -n when signal n killed it.

        None when it is no child of this process: its status is its parent's to know.
        """
        try:
            result = os.waitid(os.P_PIDFD, self._fd, os.WEXITED)
        except ChildProcessError:
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def signal(self, number: int) -> None:
        """Send it a signal, unless it is gone."""
        if self._fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Whoever waits for it then gets a ClosedResourceError."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self.discard()

    def discard(self) -> None:
        """Close it where nobody can be waiting, outside of Trio."""
        os.close(self._fd)
        self._fd = -1


@frozen
class Identity:
    """Whose process it is, by numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@define(eq=False)
class Child:
    """A child that was started, and must be waited for or closed."""

    _process: subprocess.Popen[bytes]
    _pidfd: PidFd

    @classmethod
    def start(  # noqa: PLR0913  what a process is given
        cls,
        argv: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        identity: Identity | None = None,
    ) -> Child:
        """Start a process, with the mount namespace of the calling thread. Blocks until it is executed.

        Its user and groups are the agent's, unless there is an `identity`.

        Raises:
            OSError: it can't be.
        """
        process = subprocess.Popen(  # noqa: S603  the runtime of the settings
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            cwd=cwd,
            env=env,
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=identity.groups if identity else None,
            start_new_session=True,
        )
        try:
            return cls(process, PidFd.open(process.pid))
        except OSError:
            _end(process)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    async def wait(self) -> int:
        """Wait for its end; its exit code, or 128 + n when signal n killed it. Any number may wait.

        Raises:
            trio.ClosedResourceError: it was closed, and could not be killed.
        """
        with suppress(trio.ClosedResourceError):  # it has ended in the moment in which it was closed, as a rule
            await self._pidfd.wait()
        if not self.ended():
            raise trio.ClosedResourceError("the process can't be killed, and is left to itself")
        returncode = self._process.wait()
        return SIGNALLED - returncode if returncode < 0 else returncode

    @property
    def killed_by(self) -> int | None:
        """The signal that killed it; None for a process that exited, or has not ended."""
        returncode = self._process.returncode
        return -returncode if returncode is not None and returncode < 0 else None

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if not self.ended():
            self._pidfd.signal(number)

    def discard(self) -> None:
        """Kill it and forget it, right after its start, where nobody waits for it. Blocks for a moment."""
        _end(self._process)
        self._pidfd.discard()

    async def close(self, patience: float = _REAPING) -> None:
        """Kill its process group if it has not ended, wait for so many seconds, and forget it."""
        if not self.ended():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with trio.move_on_after(patience, shield=True):
                await self.wait()
        self._pidfd.close()


def start_time(pid: int) -> int:
    """When a process was started, in ticks since the boot: proc_pid_stat(5). With its id it is like no other process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError as error:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _readable(fd: int, patience: float = 0.0) -> bool:
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(patience * 1000))
