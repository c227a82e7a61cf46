"""Detached processes of the `oci` driver: each in a session of its own, under a parent that is not the agent.

The parent has the runtime start the process, and writes its exit status into a file (`starter`); `recorder` keeps what
the process writes. All that a next agent needs is in the session's directory before the process runs:

    session.json    what was asked for, the number of the process's group, and the parent
    begun           is there once the parent begins
    pid             the process's id, once it runs
    exit            its exit status, from the parent
    exit.json       how it ended, where that has no exit status: as the agent that saw it says
    and what `recording` has
"""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import asdict, define, field, frozen

from arcbox_guest.child import PidFd, start_time
from arcbox_guest.errors import ConflictError, GuestError
from arcbox_guest.sandboxes.detached import Channel, DetachedSpec, Exit, Piece
from arcbox_guest.sandboxes.model import SIGNALLED
from arcbox_guest.sandboxes.oci import recorder
from arcbox_guest.sandboxes.oci.recording import Recording
from arcbox_guest.sandboxes.oci.root_files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from arcbox_guest.sandboxes.model import TerminalSize
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup
    from arcbox_guest.sandboxes.oci.lookup import CommandError
    from arcbox_guest.sandboxes.oci.recording import Recorder
    from arcbox_guest.sandboxes.oci.runtime import Runtime
    from arcbox_guest.sandboxes.oci.starting import Gate, Starter

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
    starter: Starter
    recorder: Recorder
    kept: int
    """Bytes of each channel."""

    group: Callable[[int], ProcessGroup]
    sandbox_is_ending: Callable[[], bool]
    unattended: set[DetachedSession]
    """Those that were started and nobody has called `run` of: whoever ends the sandbox, or the agent, closes them."""

    def new(self, spec: DetachedSpec, number: int) -> DetachedSession:
        """A session that nothing was made of yet.

        Args:
            spec: the process.
            number: of its group.
        """
        terminal = spec.command.terminal is not None
        return self._session(spec.name, {"number": number, "terminal": terminal, "facts": dict(spec.facts)})

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

    def _session(self, name: str, record: Mapping[str, Any]) -> DetachedSession:
        directory = self.directory / name
        recording = Recording(directory=directory, terminal=record["terminal"], recorder=self.recorder, limit=self.kept)
        group = self.group(record["number"])
        return DetachedSession(name=name, record=record, recording=recording, sessions=self, group=group)


@define(eq=False, kw_only=True)
class DetachedSession:
    """A detached process: `detached.DetachedProcess`."""

    name: str
    _record: Mapping[str, Any]
    """What session.json has."""

    recording: Recording
    _sessions: Sessions
    _group: ProcessGroup
    exit: Exit | None = field(init=False, default=None)
    _parent: PidFd | None = field(init=False, default=None)
    """None when it has ended, or was never forked."""

    _made: bool = field(init=False, default=False)
    """Whether the directory is this session's."""

    _killed: bool = field(init=False, default=False)
    """Whether that was asked for."""

    _ended: trio.Event = field(init=False, factory=trio.Event)

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        facts: Mapping[str, str | int | float | bool] = self._record["facts"]
        return facts

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
                    if self._parent is None:
                        self._parent = await trio.to_thread.run_sync(self._find_parent)
                    if self._parent is not None:
                        await self._parent.wait()
                    await trio.to_thread.run_sync(self._see_exit)
                    self._ended.set()
                    await trio.to_thread.run_sync(self._record_exit)
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
        if self._parent is not None:
            self._parent.close()
            self._parent = None

    async def signal(self, number: int) -> None:
        with trio.move_on_after(_STARTING):
            await self._has_started()
        if self.exit is None and (pid := self._started_pid()) is not None:
            _signal(pid, number, self._group)

    async def kill(self) -> None:
        if self.exit is None:
            self._killed = True
            self._group.kill()
        await trio.lowlevel.checkpoint()

    async def forget(self) -> None:
        await trio.to_thread.run_sync(remove_tree, self.recording.directory)

    async def start(self, spec: DetachedSpec, configure: Callable[[], Awaitable[bytes]]) -> None:
        """Start the process. It is on record, and recorded, before it runs.

        Args:
            spec: the process.
            configure: finds out what the runtime is to be told; errors of it are passed on.

        Raises:
            ConflictError: there is one of that name.
            OSError: it can't be started.
            GuestError: its output can't be recorded, or there is no parent for it.
        """
        gate = await self._sessions.starter.fork(self._group)
        try:
            configuration = await configure()
            pid, self._parent = await gate.parent()
            await trio.to_thread.run_sync(self._prepare, spec, pid)
            with self.recording.opened() as ends:
                await self.recording.open(new=True)
                await gate.open(self.recording.directory, self._argv(), ends, configuration)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._discard(gate)
            raise
        gate.close()
        self._sessions.unattended.add(self)

    def _prepare(self, spec: DetachedSpec, parent: int) -> None:
        """Have all files. Blocks.

        Args:
            spec: the process.
            parent: the process id of its parent.

        Raises:
            ConflictError: there is a process of that name.
            OSError: the disk is full, say.
        """
        self._make_directory(parent=parent, started=start_time(parent))
        self.recording.make(stdin=spec.stdin, merged=spec.merged)

    def _make_directory(self, **parent: int) -> None:
        self.recording.directory.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            self.recording.directory.mkdir(mode=0o700)
        except FileExistsError:
            sandbox_id = self._sessions.sandbox_id
            raise ConflictError(f"there is a process {self.name} in sandbox {sandbox_id} already") from None
        self._made = True
        self._path("session.json").write_bytes(json.dumps({**self._record, **parent}).encode())

    async def _discard(self, gate: Gate) -> None:
        """Have nothing of a process that could not be started."""
        with suppress(GuestError), trio.move_on_after(_STARTING):
            if self._parent is None:
                _, self._parent = await gate.parent()
            self._parent.signal(signal.SIGKILL)  # it may not be in its group yet
            await self._parent.wait()
        gate.close()
        self.close()
        await trio.to_thread.run_sync(self._remove)

    def _remove(self) -> None:
        self._group.kill()
        self._group.remove()
        if self._made:
            remove_tree(self.recording.directory)

    def refuse(self, spec: DetachedSpec, error: CommandError) -> None:
        """Have a process that never was, with a shell's complaint about it. Blocks.

        Raises:
            ConflictError: there is a process of that name.
            OSError: the disk is full, say.
        """
        self._make_directory()
        channel = Channel.STDOUT if spec.merged or self.terminal else Channel.STDERR
        line_end = "\r\n" if self.terminal else "\n"
        for name in Channel:
            self._path(name).write_bytes(f"{error}{line_end}".encode() if name is channel else b"")
        self._path("recorded").write_bytes(recorder.ENDED)
        self.exit = Exit(code=error.exit_code, at=time.time(), error=str(error))
        self._ended.set()
        self._record_exit()

    def was_started(self) -> bool:
        """Whether it was executed, or can't be, before the agent was killed; if not, it never will be. Blocks."""
        # A process that runs, or did, has `pid`: agents up to 0.4.10 did not write `begun`.
        if any(self._path(name).exists() for name in ("exit.json", "pid")):
            return True
        try:
            self._path("begun").touch(exist_ok=False)  # as its parent does, which then does not begin
        except FileExistsError:
            return True
        return False

    def look(self) -> None:
        """Find out what became of it. Blocks."""
        self.recording.look()
        self.exit = self._exit_status()
        if self.exit is None:
            with suppress(FileNotFoundError):
                self.exit = Exit(**json.loads(self._path("exit.json").read_bytes()))
        if self.exit is not None:
            self._ended.set()

    def _argv(self) -> list[str]:
        return self._sessions.runtime.detached_argv(
            self._sessions.sandbox_id,
            cgroup=self._group.runtime_name,
            console_socket="console" if self.terminal else "",
        )

    def _see_exit(self) -> None:
        """How the process has ended, now that its parent has. Blocks."""
        self.exit = self._exit_status()
        if self.exit is not None:
            return
        if self._killed or self._sessions.sandbox_is_ending() or not self._status.exists():
            self.exit = Exit(code=_KILLED, at=time.time())  # and its parent with it
        else:
            self.recording.tell(unstarted=True)
            reason = "the OCI runtime could not start it: its output says more"
            self.exit = Exit(code=_NOT_STARTED, at=time.time(), error=reason)

    def _exit_status(self) -> Exit | None:
        """What the parent has seen; None when it has not started the process, or was killed. Blocks."""
        with suppress(OSError, ValueError):
            return Exit(code=int(self._status.read_bytes()), at=self._status.stat().st_mtime)
        return None

    @property
    def _status(self) -> Path:
        """The file with the exit status."""
        path = self._path("exit")
        # Up to 0.4.10 conmon was the parent, which names the file after the sandbox.
        return path / self._sessions.sandbox_id if path.is_dir() else path

    def _record_exit(self) -> None:
        """Keep how it has ended, if that is not on record. Blocks."""
        assert self.exit is not None  # noqa: S101  for mypy
        self._group.remove()  # one that was left behind keeps it, until the sandbox ends
        if self._exit_status() is None:
            with suppress(OSError):  # the next agent finds it out once more
                _replace(self._path("exit.json"), json.dumps(asdict(self.exit)).encode())

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

    def _find_parent(self) -> PidFd | None:
        """None if it is gone. Blocks."""
        with suppress(FileNotFoundError, ProcessLookupError):
            if "parent" in self._record:
                pid, started = self._record["parent"], self._record["started"]
            else:
                pid, started = map(int, self._path("conmon").read_bytes().split())
            watch = PidFd.open(pid)
            with suppress(ProcessLookupError):
                if start_time(pid) == started:
                    return watch
            watch.discard()
        return None

    def _path(self, name: str) -> Path:
        return self.recording.directory / name


def session_numbers(directory: Path) -> set[int]:
    """The numbers of the groups of all sessions in a directory of them. Blocks."""
    numbers = set()
    for path in directory.iterdir() if directory.exists() else ():
        with suppress(OSError, ValueError):  # it was being made, or removed, when the agent was killed
            numbers.add(int(json.loads((path / "session.json").read_bytes())["number"]))
    return numbers


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
