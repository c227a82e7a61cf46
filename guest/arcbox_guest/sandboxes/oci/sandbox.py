"""A sandbox that was created, as long as the driver has it."""

from __future__ import annotations

import json
import os
import posixpath
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.child import start_time
from arcbox_guest.errors import GuestError, InvalidArgumentError, TimedOutError, UnavailableError
from arcbox_guest.sandboxes.oci import bundle, lookup, users
from arcbox_guest.sandboxes.oci.detached import session_numbers
from arcbox_guest.sandboxes.oci.exec import STARTING, ExecProcess, ExecRequest, UnstartedProcess
from arcbox_guest.sandboxes.oci.root_files import open_path, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from arcbox_guest.child import PidFd
    from arcbox_guest.sandboxes.detached import DetachedSpec
    from arcbox_guest.sandboxes.driver import Process
    from arcbox_guest.sandboxes.model import ExecSpec, Spec
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup, SandboxCgroups
    from arcbox_guest.sandboxes.oci.detached import DetachedSession, Sessions
    from arcbox_guest.sandboxes.oci.namespace import MountNamespace
    from arcbox_guest.sandboxes.oci.runtime import Runtime

_LISTENING: Final = "0A"
"""TCP_LISTEN in a table of sockets; net/tcp_states.h."""

_PF_EXITING: Final = 0x4
"""Of the flags of a process; linux/sched.h."""

_LOOKUPS: Final = 16
"""Commands of one sandbox that are looked up at the same time. Each sandbox has its own: its storage may hang."""


@define(eq=False, kw_only=True)
class LiveSandbox:
    """A sandbox whose init was started."""

    spec: Spec
    cgroups: SandboxCgroups
    directory: Path
    init: int
    """The process id of its init, while `init_alive`."""

    watch: PidFd
    """Of the init."""

    _runtime: Runtime
    _namespace: MountNamespace
    _no_new_privileges: bool
    stopped: bool = field(init=False, default=False)
    """Whether it was asked to end."""

    unattended: set[DetachedSession] = field(init=False, factory=set)
    """See `Sessions`."""

    _started: int = field(init=False, default=0)
    """Processes, ever."""

    _lookups: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_LOOKUPS))
    _left_behind: set[ProcessGroup] = field(init=False, factory=set)
    """Groups whose process has ended, and others in it have not."""

    @property
    def id(self) -> str:
        return self.spec.id

    def close(self) -> None:
        """Let go of it."""
        self.watch.close()
        while self.unattended:
            self.unattended.pop().close()

    def facts(self) -> Mapping[str, str]:
        """What a next agent has to know of it."""
        return {"init": str(self.init), "started": str(start_time(self.init))}

    def adopt_processes(self) -> None:
        """Kill what a former agent ran for its peers; whatever else runs goes on. Blocks."""
        groups = self.cgroups.groups()
        detached = session_numbers(self.directory / "sessions")
        for number, group in groups.items():
            if number not in detached and not group.is_kept():
                group.kill()
            if not group.remove():
                self._left_behind.add(group)
        self._started = max((0, *groups, *detached))

    def is_ending(self) -> bool:
        """Whether its init is gone, or on its way: the kernel ends all others before."""
        if self.stopped or self.watch.ended():
            return True
        try:
            with open(f"/proc/{self.init}/stat", "rb", buffering=0) as file:
                flags = int(file.read().rpartition(b")")[2].split()[6])  # proc_pid_stat(5)
        except OSError:
            return True
        return bool(flags & _PF_EXITING)

    def check_alive(self) -> None:
        """Raises UnavailableError: its init is gone."""
        if self.is_ending():
            raise UnavailableError(f"sandbox {self.id} does not run any more: its init has ended")

    async def ended(self) -> str:
        """Wait until its init has ended unasked; why."""
        await self.watch.wait()
        if self.stopped:
            await trio.sleep_forever()
        killed = self.cgroups.out_of_memory_kills()
        if killed:
            return (
                f"its init has ended; its memory limit of {self.spec.limits.memory_mib} MiB was reached {killed} times"
            )
        return "its init has ended, which nobody asked for: it was killed, say"

    def listening(self) -> set[int]:
        """The TCP ports that something in it listens on: proc_pid_net(5). Blocks."""
        ports = set()
        for name in ("tcp", "tcp6"):
            with suppress(FileNotFoundError), open(f"/proc/{self.init}/net/{name}", encoding="ascii") as table:
                fields = [line.split() for line in table][1:]
                ports |= {int(field[1].rpartition(":")[2], 16) for field in fields if field[3] == _LISTENING}
        self.check_alive()  # else they are those of another process, which got the same number
        return ports

    async def terminate(self) -> None:
        """Send SIGTERM to all that runs."""
        await self.cgroups.terminate(self._runtime.is_at)

    @asynccontextmanager
    async def process(self, command: ExecSpec) -> AsyncIterator[Process]:
        """Run a process; its tree is killed when the context is left before its end."""
        self.check_alive()
        try:
            configuration = await self._configuration(command)
        except lookup.CommandError as error:
            yield UnstartedProcess.of(error, terminal=command.terminal is not None)
            return
        self._started += 1
        group = self.cgroups.group(self._started)
        with self._blamed():
            process = await self._namespace.run(self._start, command, group, configuration)
        try:
            with self._blamed():
                await process.begin()
            yield process
        finally:
            with trio.CancelScope(shield=True):  # a SIGKILL and some seconds at most
                await process.close()
            self._left_behind = {left for left in (*self._left_behind, group) if not left.remove()}
            if group in self._left_behind:
                group.keep()

    async def start_detached(self, spec: DetachedSpec, sessions: Sessions) -> DetachedSession:
        """Start a process that outlives the agent."""
        self.check_alive()
        self._started += 1
        session = sessions.new(spec, self._started)
        with self._blamed():
            try:
                await session.start(spec, partial(self._configuration, spec.command))
            except lookup.CommandError as error:
                await trio.to_thread.run_sync(session.refuse, spec, error)
        return session

    async def _configuration(self, command: ExecSpec) -> bytes:
        """What the runtime is told of a process. Looks at the sandbox's files, whose storage may hang."""
        try:
            with self._blamed(), trio.fail_after(STARTING):
                return await self._namespace.run_abandonable(self._look_up, command, limiter=self._lookups)
        except trio.TooSlowError:
            raise TimedOutError(f"the files of sandbox {self.id} can't be read: its storage does not answer") from None

    def _look_up(self, command: ExecSpec) -> bytes:
        with self.root() as root:
            identity = users.find(root, command.user or self.spec.user)
            cwd = posixpath.join("/", command.working_dir or self.spec.working_dir)
            _check_directory(root, cwd)
            environment = bundle.environment(self.spec, command, identity)
            lookup.check_size(command.argv, environment)
            lookup.check(
                root, command.argv[0], working_dir=cwd, path=environment.get("PATH", bundle.PATH), identity=identity
            )
        config = bundle.process_config(command, environment, cwd, identity, no_new_privileges=self._no_new_privileges)
        return json.dumps(config).encode()

    def _start(self, command: ExecSpec, group: ProcessGroup, configuration: bytes) -> ExecProcess:
        name = group.path.name
        socket = "" if command.terminal is None else f"terminal-{name}"
        argv = partial(
            self._runtime.exec_argv,
            self.id,
            pid_file=str(self.directory / f"process-{name}.pid"),
            cgroup=group.runtime_name,
            console_socket=socket,
        )
        return ExecProcess.start(
            ExecRequest(
                argv=argv,
                configuration=configuration,
                group=group,
                console_socket=str(self.directory / socket) if socket else "",
                has_started=partial(group.has_started, self._runtime.is_at),
                sandbox_is_ending=self.is_ending,
            )
        )

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Blame the end of the sandbox for what it causes while a process is started."""
        try:
            yield
        except InvalidArgumentError:
            raise
        except GuestError as error:
            if self.is_ending():
                raise UnavailableError("the sandbox ended while the process was started in it") from error
            raise
        except OSError as error:
            self.check_alive()
            raise GuestError(f"the process can't be started in sandbox {self.id}: {error.strerror}") from error

    def root(self) -> AbstractContextManager[int]:
        """The sandbox's root directory, as its init sees it."""
        return self._opened("root", os.O_PATH | os.O_DIRECTORY)

    def network_namespace(self) -> AbstractContextManager[int]:
        """Its network namespace."""
        return self._opened("ns/net", os.O_RDONLY)

    @contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        """Something of its init in /proc."""
        try:
            with open_path(f"/proc/{self.init}/{name}", flags) as opened:
                self.check_alive()  # else it is another process's, which got the same number
                yield opened
        except FileNotFoundError:
            self.check_alive()
            raise


def _check_directory(root: int, path: str) -> None:
    try:
        with opened(root, path, os.O_PATH | os.O_DIRECTORY):
            pass
    except OSError as error:
        raise InvalidArgumentError(f"the working directory {path} can't be used: {error.strerror}") from error
