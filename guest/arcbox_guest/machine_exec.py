"""Processes in the agent's own root, for whoever may be root on this machine.

Each has a session of its own (setsid(2)), with a terminal of its own if that is asked for. When its context is left,
all processes of the session are killed, those in other process groups too, as a shell with job control makes them.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import threading
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.child import Child, Identity, PidFd
from arcbox_guest.errors import InvalidArgumentError, NotSupportedError, UnavailableError
from arcbox_guest.sandboxes.oci.streams import PipeOutput, StreamEnd, TerminalInput, enlarge
from arcbox_guest.tools import SYSTEM_PATH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from arcbox_guest.sandboxes.model import TerminalSize

    _Run = partial[Child]

_MOST: Final = 64
"""Processes that may be starting at the same time; each waits for whatever file system its program is on."""

_STARTING: Final = 10.0
"""Seconds in which a process must have been executed."""

_KILLING: Final = 5.0
"""Seconds for the end of a session."""

_MOST_ID: Final = 2**32 - 1
"""No user or group has this number, nor a larger one."""

_MOST_ROUNDS: Final = 100
"""Looks for processes of a session that is killed: whoever forks meanwhile is found by the next one."""

_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
"""What shells end with, for a command that they can't run."""

# The first terminal that a session's leader opens becomes its controlling one: tty(4).
_ON_TERMINAL: Final = ("/bin/sh", "-c", 'exec "$@" <>"$0" >&0 2>&1')

_AS_LOGIN_SHELL: Final = 'exec "$0" "$@"'


@frozen(kw_only=True)
class MachineCommand:
    """What is to be run."""

    argv: tuple[str, ...]
    """Empty for the user's shell, if it is a login."""

    working_dir: str = ""
    """Empty for the user's home."""

    user: str = ""
    """A name, or uid[:gid]; empty for root."""

    env: Mapping[str, str] = field(factory=dict)
    terminal: TerminalSize | None = None
    login: bool = False
    """Whether a login shell of the user runs it, which reads the profile."""


class CommandFailedError(Exception):
    """The command can't be run."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@define(eq=False)
class MachineProcess:
    """A process that was started; a `sandboxes.driver.Process`, but that no sandbox is around it."""

    _child: Child
    _stdin: StreamEnd
    """With a terminal, its master."""

    _outputs: list[StreamEnd]
    """Of stdout and stderr; empty with a terminal."""

    stdout: PipeOutput = field(init=False)
    stderr: PipeOutput | None = field(init=False)
    _terminal: TerminalInput | None = field(init=False)
    failure: str = field(init=False, default="")

    def __attrs_post_init__(self) -> None:
        if self._outputs:
            stdout, stderr = self._outputs
            self.stdout, self.stderr, self._terminal = PipeOutput(stdout), PipeOutput(stderr), None
        else:
            self.stdout, self.stderr, self._terminal = PipeOutput(self._stdin), None, TerminalInput(self._stdin)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def killed_by(self) -> int | None:
        """The signal that killed it, once `wait` has returned."""
        return self._child.killed_by

    async def send_stdin(self, data: bytes) -> None:
        """Write to its stdin. Raises `trio.BrokenResourceError` if nobody reads there."""
        await (self._terminal or self._stdin).send(data)

    async def close_stdin(self) -> None:
        """Let it see the end of its stdin."""
        if self._terminal is not None:
            await self._terminal.end()
        else:
            self._stdin.close()
            await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        """Set the size of its terminal, if it has one."""
        if self._terminal is not None:
            self._terminal.resize(size)

    async def wait(self) -> int:
        """Wait for its end; its exit code, or 128 + n when signal n killed it."""
        return await self._child.wait()

    async def kill(self) -> None:
        """Kill it, with all processes of its session."""
        await trio.to_thread.run_sync(kill_session, self.pid, abandon_on_cancel=True)

    async def close(self) -> None:
        """Kill what is left of its session, and close all files."""
        with trio.move_on_after(_KILLING):
            await self.kill()
        await self._child.close()
        for end in (self._stdin, *self._outputs):
            end.close()

    def discard(self) -> None:
        """The same, right after its start and outside of Trio."""
        kill_session(self.pid)
        self._child.discard()
        for end in (self._stdin, *self._outputs):
            os.close(end.fd)


@define(eq=False)
class MachineExec:
    """Runs processes in the agent's own root."""

    _enabled: bool
    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_MOST))

    @asynccontextmanager
    async def process(self, command: MachineCommand) -> AsyncIterator[MachineProcess]:
        """Start a process; its session is killed when the context is left.

        Raises:
            NotSupportedError: the setting forbids it.
            InvalidArgumentError: there is no such user, or nothing to run.
            UnavailableError: it takes too long, for a program on storage that hangs.
            CommandFailedError: the command can't be run.
        """
        if not self._enabled:
            raise NotSupportedError("processes on the machine itself are not allowed here: machine.allow_exec is false")
        attempt = _Attempt(command)
        try:
            with trio.move_on_after(_STARTING):
                await trio.to_thread.run_sync(attempt.run, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            process = attempt.take()
        if process is None:
            raise UnavailableError(f"the command could not be executed within {_STARTING:.0f} s")
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):  # each step has a deadline of its own
                await process.close()


@define(eq=False)
class _Attempt:
    """A start in a thread that may be abandoned: what comes of it then is killed."""

    _command: MachineCommand
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    _process: MachineProcess | None = field(init=False, default=None)
    _over: bool = field(init=False, default=False)

    def run(self) -> None:
        process = start(self._command)
        with self._lock:
            self._process = process
            if not self._over:
                return
        process.discard()

    def take(self) -> MachineProcess | None:
        """The process, if there is one by now."""
        with self._lock:
            self._over = True
            return self._process


def start(command: MachineCommand) -> MachineProcess:
    """Execute a command. Blocks, for as long as the storage of its program does.

    Raises:
        InvalidArgumentError: there is no such user, or nothing to run.
        CommandFailedError: it can't be executed.
    """
    account = find_account(command.user)
    argv = _argv(command, account)
    env = {
        "PATH": SYSTEM_PATH,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
        **({"TERM": "xterm"} if command.terminal else {}),
        **command.env,
    }
    cwd = command.working_dir or (account.home if os.path.isdir(account.home) else "/")  # noqa: PTH112  in a thread
    _check_executable(argv[0], env["PATH"], cwd)
    try:
        run = _on_terminal if command.terminal is not None else _on_pipes
        process = run(command, partial(Child.start, cwd=cwd, env=env, identity=account.identity), argv)
    except OSError as error:
        code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        raise CommandFailedError(f"{error.filename or argv[0]}: {error.strerror}", code) from error
    with suppress(OSError):  # the agent's own is for the agent, if it has one
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("0")
    return process


def _argv(command: MachineCommand, account: Account) -> tuple[str, ...]:
    if any("\0" in text for text in (*command.argv, command.working_dir, *command.env, *command.env.values())):
        raise InvalidArgumentError("a command has no NUL in it")
    if not command.login:
        if not command.argv or not command.argv[0]:
            raise InvalidArgumentError("there is no command to run")
        return command.argv
    return (account.shell, "-l", *(("-c", _AS_LOGIN_SHELL, *command.argv) if command.argv else ()))


def _check_executable(program: str, path: str, cwd: str) -> None:
    """A terminal's shell would say it on the terminal only, and exec(3) fails alike for a directory that is missing."""
    if not os.path.isdir(cwd):  # noqa: PTH112  in a thread
        raise CommandFailedError(f"{cwd}: No such directory", _NOT_EXECUTABLE)
    found = os.path.join(cwd, program) if "/" in program else shutil.which(program, path=path)  # noqa: PTH118
    if found is None or not os.path.exists(found):  # noqa: PTH110
        raise CommandFailedError(f"{program}: command not found", _NOT_FOUND)
    if os.path.isdir(found) or not os.access(found, os.X_OK):  # noqa: PTH112
        raise CommandFailedError(f"{program}: can't be executed", _NOT_EXECUTABLE)


def _on_pipes(_command: MachineCommand, run: _Run, argv: tuple[str, ...]) -> MachineProcess:
    with ExitStack() as theirs, ExitStack() as ours:
        pipes = []
        for _ in range(3):
            reader, writer = os.pipe()
            pipes.append((reader, writer))
            theirs.callback(os.close, reader if len(pipes) == 1 else writer)
            ours.callback(os.close, writer if len(pipes) == 1 else reader)
        (stdin, write_in), (read_out, stdout), (read_err, stderr) = pipes
        enlarge(stdout)
        child = run(argv, stdin=stdin, stdout=stdout, stderr=stderr)
        ours.pop_all()
    return MachineProcess(child, StreamEnd(write_in), [StreamEnd(read_out), StreamEnd(read_err)])


def _on_terminal(command: MachineCommand, run: _Run, argv: tuple[str, ...]) -> MachineProcess:
    assert command.terminal is not None  # noqa: S101  for mypy
    master, slave = os.openpty()
    with ExitStack() as ours:
        ours.callback(os.close, master)
        try:
            name = os.ttyname(slave)
            identity = run.keywords["identity"]
            if identity is not None:
                os.fchown(slave, identity.uid, -1)
            # It has the terminal from the start: a master whose other end nobody has open reads as ended.
            child = run((*_ON_TERMINAL, name, *argv), stdin=slave, stdout=slave, stderr=slave)
        finally:
            os.close(slave)
        ours.pop_all()
    process = MachineProcess(child, StreamEnd(master), [])
    process.resize(command.terminal)
    return process


@frozen
class Account:
    """A user of this machine, or a number that is nobody's."""

    name: str
    home: str
    shell: str
    identity: Identity | None
    """None for the agent's own user."""


def find_account(user: str) -> Account:
    """The account of a name, or of uid[:gid]; root's for nothing.

    Raises:
        InvalidArgumentError: there is none.
    """
    name, _, group = (user or "0").partition(":")
    try:
        known = pwd.getpwuid(int(name)) if name.isascii() and name.isdecimal() else pwd.getpwnam(name)
        uid, gid, name, home, shell = known.pw_uid, known.pw_gid, known.pw_name, known.pw_dir, known.pw_shell
    except (KeyError, OverflowError, ValueError):
        if not (name.isascii() and name.isdecimal() and int(name) < _MOST_ID):
            raise InvalidArgumentError(f"there is no user {user[:80]!r} on this machine") from None
        uid, gid, home, shell = int(name), 0, "/", ""
    groups = tuple(os.getgrouplist(name, gid)) if not group and shell else (gid,)
    if group:
        gid = _find_group(group)
        groups = (gid,)
    own = uid == os.geteuid() and gid == os.getegid()
    return Account(name, home or "/", shell or "/bin/sh", None if own else Identity(uid, gid, groups))


def _find_group(group: str) -> int:
    if group.isascii() and group.isdecimal() and int(group) < _MOST_ID:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise InvalidArgumentError(f"there is no group {group[:80]!r} on this machine") from None


def kill_session(leader: int) -> None:
    """Kill all processes of a session, until none is left; those that left it by setsid(2) are not in it any more."""
    for _ in range(_MOST_ROUNDS):
        members = [pid for pid in _pids() if _session_of(pid) == leader]
        if not members:
            return
        for pid in members:
            with suppress(ProcessLookupError, PermissionError), PidFd.opened(pid) as process:
                if _session_of(pid) == leader:  # still: the number was not used again meanwhile
                    process.signal(signal.SIGKILL)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208  names are enough


def _session_of(pid: int) -> int | None:
    """The session of a process that runs; None for one that is gone or a zombie. See proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, _ppid, _pgrp, session = stat.rpartition(")")[2].split()[:4]
    return None if state in "ZX" else int(session)
