"""The process of a daemon: started in a session of its own, found again by its pid file, described at its end.

A daemon outlives the agent that started it. Its pid file has three lines: pid, start time (field 22 of
/proc/PID/stat, in clock ticks since boot), and the path of the program. A pid is believed only if all three match: the
kernel gives pids to other processes later.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from arcbox_guest.child import PidFd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_GATE: Final = ("/bin/sh", "-c", 'read go && cd / && exec "$@" </dev/null', "sh")
"""Executes a program once it is given a line. Before that its pid is in the pid file, and it is in its cgroup."""

_RESET_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Ignored by Python, and so by what it executes unless they are reset."""

_TAIL: Final = 4096
"""Bytes at the end of a log that are looked at for its last lines."""

_LINE: Final = 300
"""Characters of one of those lines that are kept."""


@frozen
class Identity:
    """What tells a process from all others."""

    pid: int
    start_time: int
    """Clock ticks after boot."""

    program: str
    """The absolute path that was executed."""

    @classmethod
    def of(cls, pid: int, program: str) -> Identity:
        """The identity of a process that runs a program, or will. Raises OSError: there is no such process."""
        return cls(pid, _start_time(pid), program)

    @classmethod
    def read(cls, pid_file: Path) -> Identity | None:
        """What a pid file says; None when there is none, or it is not whole."""
        try:
            pid, start_time, program = pid_file.read_text("utf-8", "surrogateescape").splitlines()
            return cls(int(pid), int(start_time), program)
        except (OSError, ValueError):
            return None

    def write(self, pid_file: Path) -> None:
        """Replace a pid file, so that there is never half of one."""
        temporary = pid_file.with_name(f".{pid_file.name}.tmp")
        temporary.write_text(f"{self.pid}\n{self.start_time}\n{self.program}\n", "utf-8", "surrogateescape")
        temporary.rename(pid_file)

    def open(self) -> PidFd | None:
        """The process, if it is still there and runs this program."""
        try:
            pidfd = PidFd.open(self.pid)
        except OSError:
            return None
        with suppress(OSError):  # it ends at this moment
            if _start_time(self.pid) == self.start_time and self._runs_program() and not pidfd.ended():
                return pidfd
        pidfd.discard()
        return None

    def _runs_program(self) -> bool:
        process = Path("/proc", str(self.pid))
        executable = str(process.joinpath("exe").readlink())
        if executable.removesuffix(" (deleted)") == str(Path(self.program).resolve()):
            return True
        arguments = process.joinpath("cmdline").read_bytes().split(b"\0")
        return os.fsencode(self.program) in arguments[1:3]  # a script, behind its interpreter and maybe an option of it


@define(eq=False)
class DaemonProcess:
    """A daemon that runs."""

    pid: int
    pidfd: PidFd
    _log: Path
    _log_start: int = 0
    """Size of the log when this process began to write to it."""

    _status: int | None = field(init=False, default=None)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        pid_file: Path,
        cgroup: Path | None = None,
    ) -> DaemonProcess:
        """Start a program, whose name is an absolute path. Blocks for some milliseconds.

        It reads nothing, and writes to the end of the log. An agent that is killed at any moment leaves either no
        process, or one that its pid file tells of.

        Raises:
            OSError: it can't be started.
        """
        for file in (log, pid_file):
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            log_start = os.fstat(output).st_size
            pid = os.posix_spawn(
                _GATE[0],
                [*_GATE, *argv],
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, *pair) for pair in ((reader, 0), (output, 1), (output, 2))],
                setsid=True,
                setsigmask=(),
                setsigdef=_RESET_SIGNALS,
            )
            os.close(reader)
            reader = -1
            process = cls(pid, PidFd.open(pid), log, log_start)
            try:
                if cgroup is not None:
                    cgroup.mkdir(parents=True, exist_ok=True)
                    cgroup.joinpath("cgroup.procs").write_text(str(pid))
                Identity.of(pid, argv[0]).write(pid_file)
                os.write(writer, b"go\n")
            except OSError:
                process.discard()
                raise
            return process
        finally:
            for descriptor in (output, writer, reader):
                if descriptor >= 0:
                    os.close(descriptor)

    @classmethod
    def find(cls, pid_file: Path, log: Path) -> DaemonProcess | None:
        """The daemon that an earlier agent started, if it still runs."""
        identity = Identity.read(pid_file)
        pidfd = None if identity is None else identity.open()
        if identity is None or pidfd is None:
            return None
        return cls(identity.pid, pidfd, log)

    def ended(self) -> bool:
        """Whether it has."""
        return self.pidfd.ended()

    def describe_end(self) -> str:
        """How it ended, with the last lines of its log. It has; blocks for a moment."""
        status = self.pidfd.reap()
        if status is None:
            how = "ended, with a status that only the agent which started it could know"
        elif status < 0:
            how = f"was killed by {_signal_name(-status)}"
        else:
            how = f"exited with status {status}"
        lines = self.last_lines()
        return f"{how}; its log ends with: {lines}" if lines else how

    def last_lines(self, count: int = 3) -> str:
        """The last lines that it wrote, joined by ` | `; empty when it wrote nothing. Blocks for a moment."""
        try:
            with self._log.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(size - _TAIL, self._log_start if size >= self._log_start else 0))
                text = file.read(_TAIL).decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip()[:_LINE] for line in text.splitlines() if line.strip()]
        return " | ".join("".join(filter(str.isprintable, line)) for line in lines[-count:])

    def discard(self) -> None:
        """Kill it right after its start. Blocks for a moment."""
        self.pidfd.signal(signal.SIGKILL)
        self.pidfd.reap()
        self.pidfd.discard()


def bound_log(log: Path, limit: int) -> None:
    """Cut a log that has grown beyond a limit down to its last half, in place: its daemon goes on writing to it.

    What is written between the copy and the cut is lost; that is some microseconds.

    Raises:
        OSError: it can't be done.
    """
    with log.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            return
        file.seek(size - limit // 2)
        newest = file.read()
        file.truncate(0)
        with log.open("ab") as end:
            end.write(newest[newest.find(b"\n") + 1 :])


def _start_time(pid: int) -> int:
    """Field 22 of proc_pid_stat(5). The second field, in parentheses, may hold anything."""
    fields = Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[22 - 3])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
