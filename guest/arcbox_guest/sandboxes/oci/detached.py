"""Detached processes of the `oci` driver: each in a session of its own, under Debian's conmon.

conmon has the runtime start the process, is its parent, and writes its exit status into a file; `recorder` keeps what
it writes. All that a next agent needs is in the session's directory before the process runs:

    session.json    what was asked for, and the number of the process's group
    conmon          conmon's process id and start time
    begun           is there once conmon is executed
    process.json    the process's configuration, for the runtime
    pid             the process's id, once it runs
    exit/<sandbox>  its exit status, from conmon
    exit.json       how it ended, as the agent that saw it says
    and what `recording` has
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import asdict, define, field, frozen

from arcbox_guest.child import PidFd, start_time
from arcbox_guest.errors import ConflictError
from arcbox_guest.sandboxes.detached import Channel, DetachedSpec, Exit, Piece
from arcbox_guest.sandboxes.model import SIGNALLED
from arcbox_guest.sandboxes.oci import recorder
from arcbox_guest.sandboxes.oci.recording import Recording
from arcbox_guest.sandboxes.oci.root_files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from arcbox_guest.sandboxes.model import TerminalSize
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup
    from arcbox_guest.sandboxes.oci.lookup import CommandError
    from arcbox_guest.sandboxes.oci.namespace import MountNamespace
    from arcbox_guest.sandboxes.oci.recording import Ends, Recorder
    from arcbox_guest.sandboxes.oci.runtime import Runtime

_GATE: Final = ("/bin/sh", "-c", 'cd "$0" && read go && : >begun && exec "$@" <&3 3<&-')
"""Executes a command, in a directory and with file 3 as its stdin, once it was given a line: conmon has to be in its
cgroup, and on record, before it starts anything. Nothing is executed when the agent is killed before."""

_LEFT_BEHIND: Final = 1.0
"""Seconds that the output may stay open after the end of its process: a daemon that it left behind can hold it."""

_STARTING: Final = 2.0
"""Seconds in which a process that is being started should have been: usually 0.01."""

_POLL: Final = 0.005
"""Seconds between two looks for what tells of itself to nobody."""

_KILLED: Final = SIGNALLED + signal.SIGKILL
_NOT_STARTED: Final = 126


@frozen(kw_only=True)
class Sessions:
    """Where the sessions of one sandbox are, and what they need."""

    directory: Path
    sandbox_id: str
    runtime: Runtime
    conmon: Callable[[], str]
    """Finds its path; raises NotSupportedError."""

    recorder: Recorder
    kept: int
    """Bytes of each channel."""

    group: Callable[[int], ProcessGroup]
    sandbox_is_ending: Callable[[], bool]
    unattended: set[DetachedSession]
    """Those that were started and nobody has called `run` of: whoever ends the sandbox, or the agent, closes them."""

    def prepare(self, spec: DetachedSpec, number: int, configuration: bytes | CommandError) -> DetachedSession:
        """Make a session's directory, with all that is to be on record. Blocks.

        Args:
            spec: the process.
            number: of its group.
            configuration: for the runtime, or why it can't be executed.

        Raises:
            ConflictError: there is one of that name.
            OSError: the disk is full, say.
        """
        directory = self.directory / spec.name
        self.directory.mkdir(mode=0o700, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise ConflictError(f"there is a process {spec.name} in sandbox {self.sandbox_id} already") from None
        facts = {"number": number, "terminal": spec.command.terminal is not None, "facts": dict(spec.facts)}
        session = self._session(spec.name, facts)
        _replace(directory / "session.json", json.dumps(facts).encode())
        if isinstance(configuration, bytes):
            session.recording.make(stdin=spec.stdin, merged=spec.merged)
            (directory / "exit").mkdir()
            (directory / "process.json").write_bytes(configuration)
        else:
            session.refuse(configuration, Channel.STDOUT if spec.merged or session.terminal else Channel.STDERR)
        return session

    def find(self) -> list[DetachedSession]:
        """Those that were ever started. Blocks.

        A former agent may have been killed before it could start one, and nobody was told of that: it is removed, so
        that who asks for it again gets it.
        """
        found = []
        for path in sorted(self.directory.iterdir()) if self.directory.exists() else ():
            try:
                session = self._session(path.name, json.loads((path / "session.json").read_bytes()))
            except (OSError, ValueError):  # the agent was killed while it was made, or removed
                session = None
            if session is not None and session.was_started():
                session.look()
                found.append(session)
            else:
                remove_tree(path)
        return found

    def _session(self, name: str, facts: Mapping[str, Any]) -> DetachedSession:
        directory = self.directory / name
        recording = Recording(directory=directory, terminal=facts["terminal"], recorder=self.recorder, limit=self.kept)
        return DetachedSession(
            name=name,
            facts=facts["facts"],
            recording=recording,
            sessions=self,
            group=self.group(facts["number"]),
        )


@define(eq=False, kw_only=True)
class DetachedSession:
    """A detached process: `detached.DetachedProcess`."""

    name: str
    facts: Mapping[str, str | int | float | bool]
    recording: Recording
    _sessions: Sessions
    _group: ProcessGroup
    exit: Exit | None = field(init=False, default=None)
    _conmon: PidFd | None = field(init=False, default=None)
    """None when it has ended, or was never started."""

    _ended: trio.Event = field(init=False, factory=trio.Event)

    @property
    def terminal(self) -> bool:
        return self.recording.terminal

    @property
    def stdin_written(self) -> int:
        return self.recording.stdin_written

    @property
    def stdin_closed(self) -> bool:
        return self.exit is not None or self.recording.stdin_closed

    def length(self, channel: Channel) -> int:
        return self.recording.lengths[channel]

    async def read(self, channel: Channel, offset: int) -> Piece:
        return await self.recording.read(channel, offset)

    async def write_stdin(self, offset: int, data: bytes, *, last: bool = False) -> None:
        await self.recording.write(offset, data, last=last)

    def resize(self, size: TerminalSize) -> None:
        self.recording.resize(size)

    async def wait(self) -> Exit:
        await self._ended.wait()
        assert self.exit is not None  # noqa: S101  for mypy
        return self.exit

    async def run(self) -> Exit:
        self._sessions.unattended.discard(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.recording.follow)
                if self.exit is None:
                    if self._conmon is None:
                        self._conmon = await trio.to_thread.run_sync(_conmon_of, self.recording.directory)
                    if self._conmon is not None:
                        await self._conmon.wait()
                    await trio.to_thread.run_sync(self._see_exit)
                self._ended.set()
                with trio.move_on_after(_LEFT_BEHIND):
                    await self.recording.wait_complete()
                self.recording.give_up()
                nursery.cancel_scope.cancel()
        finally:
            self.close()
        return await self.wait()

    def close(self) -> None:
        """Let go of a process that nobody waits for. It goes on, and is recorded."""
        self.recording.close()
        if self._conmon is not None:
            if self._conmon.ended():
                self._conmon.reap()
            self._conmon.close()
            self._conmon = None

    async def signal(self, number: int) -> None:
        with trio.move_on_after(_STARTING):
            await self._has_started()
        if self.exit is None and (pid := self._started_pid()) is not None:
            _signal(pid, number, self._group)

    async def kill(self) -> None:
        if self.exit is None:
            self._group.kill()
        await trio.lowlevel.checkpoint()

    async def forget(self) -> None:
        await trio.to_thread.run_sync(remove_tree, self.recording.directory)

    async def start(self, namespace: MountNamespace) -> None:
        """Start the process. It is on record, and recorded, before it runs.

        Raises:
            OSError: it can't be.
            GuestError: its output can't be recorded.
        """
        with self.recording.opened() as ends:
            await self.recording.open(new=True)
            await namespace.run(self._start, ends)
        self._sessions.unattended.add(self)

    def _start(self, ends: Ends) -> None:
        """Have conmon start the process. Blocks; to be called in the driver's namespace.

        Raises:
            OSError: it can't be.
        """
        gate, go = os.pipe2(os.O_CLOEXEC)
        try:
            self._group.create()
            pid = self._spawn(ends, gate)
            self._conmon = PidFd.open(pid)
            try:
                self._group.enter(pid)
                _replace(self._path("conmon"), f"{pid} {start_time(pid)}".encode())
                os.write(go, b"go\n")
            except OSError:
                self._conmon.signal(signal.SIGKILL)
                self._conmon.reap()
                raise
        finally:
            os.close(gate)
            os.close(go)

    def _spawn(self, ends: Ends, gate: int) -> int:
        # No `Child`: it is nobody's who would have to end it, and the next agent's as well.
        return os.posix_spawn(
            _GATE[0],
            [*_GATE, str(self.recording.directory), *self._argv()],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fd, target)
                for target, fd in enumerate((gate, ends.stdout, ends.stderr, ends.stdin))
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
        )

    def discard(self) -> None:
        """Have nothing of a process that could not be started. Blocks for a moment."""
        self._group.kill()
        self.close()
        self._group.remove()
        remove_tree(self.recording.directory)

    def refuse(self, error: CommandError, channel: Channel) -> None:
        """Have a process that never was, with a shell's complaint about it. Blocks."""
        line_end = "\r\n" if self.terminal else "\n"
        for name in Channel:
            self._path(name).write_bytes(f"{error}{line_end}".encode() if name is channel else b"")
        self._path("stdin").touch()
        self._path("recorded").write_bytes(recorder.ENDED)
        self._end(Exit(code=error.exit_code, at=time.time(), error=str(error)))

    def was_started(self) -> bool:
        """Whether it was executed, or can't be, before the agent was killed. Blocks for a moment."""
        # A process that runs, or did, has `pid`: agents up to 0.4.10 did not write `begun`.
        if any(self._path(name).exists() for name in ("exit.json", "begun", "pid")):
            return True
        conmon = _conmon_of(self.recording.directory)
        if conmon is not None:  # it is at the gate: it has its line, or sees now that it gets none
            deadline = time.monotonic() + _STARTING
            while not (self._path("begun").exists() or conmon.ended() or time.monotonic() > deadline):
                time.sleep(_POLL)
            conmon.discard()
        return self._path("begun").exists()

    def look(self) -> None:
        """Find out what became of it. Blocks."""
        self.recording.look()
        with suppress(FileNotFoundError):
            self.exit = Exit(**json.loads(self._path("exit.json").read_bytes()))
            self._ended.set()

    def _argv(self) -> list[str]:
        runtime_options = ["--console-socket=console"] if self.terminal else []
        if self._group.runtime_name is not None:
            runtime_options.append(f"--cgroup={self._group.runtime_name}")
        directory = self.recording.directory
        options = {
            "--cid": self._sessions.sandbox_id,
            "--cuuid": self.name,
            "--bundle": str(directory),
            "--exec-process-spec": str(directory / "process.json"),
            "--container-pidfile": str(directory / "pid"),
            "--exit-dir": str(directory / "exit"),
            "--log-path": "passthrough",
            "--runtime": self._sessions.runtime.path,
        }
        argv = [self._sessions.conmon(), "--sync", "--exec", *(word for option in options.items() for word in option)]
        for argument in self._sessions.runtime.state_arguments:
            argv += ["--runtime-arg", argument]
        for option in runtime_options:
            argv += ["--runtime-opt", option]
        return argv

    def _see_exit(self) -> None:
        """How the process has ended, now that conmon has. Blocks."""
        killed = self._sessions.sandbox_is_ending() or self._path("pid").exists()
        if self._conmon is not None:
            killed = self._conmon.reap() == -signal.SIGKILL or killed
            self._conmon.discard()
            self._conmon = None
        self._group.remove()  # one that was left behind keeps it, until the sandbox ends
        status = self._path("exit") / self._sessions.sandbox_id
        try:
            code, at = int(status.read_bytes()), status.stat().st_mtime
        except (OSError, ValueError):
            if killed:
                self._end(Exit(code=_KILLED, at=time.time()))
            else:
                self.recording.tell(unstarted=True)
                reason = "the OCI runtime could not start it, or the agent was killed before: its output says more"
                self._end(Exit(code=_NOT_STARTED, at=time.time(), error=reason))
        else:
            self._end(Exit(code=code, at=at))

    def _end(self, ended: Exit) -> None:
        self.exit = ended
        with suppress(OSError):  # the next agent finds it out once more
            _replace(self._path("exit.json"), json.dumps(asdict(ended)).encode())

    async def _has_started(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.exit is None and self._started_pid() is None:  # noqa: ASYNC110  the runtime tells nobody
            await trio.sleep(_POLL)

    def _started_pid(self) -> int | None:
        """The process's id, if it is what it shall be: not the runtime any more."""
        try:
            pid = int(self._path("pid").read_bytes())
        except (OSError, ValueError):
            return None
        return None if self._sessions.runtime.is_at(pid) else pid

    def _path(self, name: str) -> Path:
        return self.recording.directory / name


def session_numbers(directory: Path) -> set[int]:
    """The numbers of the groups of all sessions in a directory of them. Blocks."""
    numbers = set()
    for path in directory.iterdir() if directory.exists() else ():
        with suppress(OSError, ValueError):  # it was being made, or removed, when the agent was killed
            numbers.add(int(json.loads((path / "session.json").read_bytes())["number"]))
    return numbers


def reap(directory: Path) -> None:
    """Reap the conmons of all sessions in a directory, which were killed. Blocks.

    They are children of this process if it has started them, and nobody may be watching them: the sandbox was not
    adopted, say.
    """
    for path in directory.iterdir() if directory.exists() else ():
        conmon = _conmon_of(path)
        if conmon is not None:
            conmon.reap()
            conmon.discard()


def _conmon_of(directory: Path) -> PidFd | None:
    """The conmon of the session in a directory; None if it is gone. Blocks."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid, started = map(int, (directory / "conmon").read_bytes().split())
        watch = PidFd.open(pid)
        with suppress(ProcessLookupError):
            if start_time(pid) == started:
                return watch
        watch.discard()
    return None


def _signal(pid: int, number: int, group: ProcessGroup) -> None:
    with suppress(ProcessLookupError):
        watch = PidFd.open(pid)
        try:
            if pid in group.inside():  # else another process has got the number
                watch.signal(number)
        finally:
            watch.discard()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
