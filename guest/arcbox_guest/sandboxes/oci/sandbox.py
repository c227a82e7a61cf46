"""A sandbox that was created, as long as the driver has it."""

from __future__ import annotations

import json
import os
import posixpath
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.errors import GuestError, InvalidArgumentError, UnavailableError
from arcbox_guest.sandboxes.oci import bundle, lookup, processes, users
from arcbox_guest.sandboxes.oci.clients import Order, PipedClient
from arcbox_guest.sandboxes.oci.root_files import open_path, opened
from arcbox_guest.sandboxes.oci.terminals import ConsoleSocket
from arcbox_guest.sandboxes.oci.unstarted import Unstarted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from arcbox_guest.child import PidFd
    from arcbox_guest.sandboxes.driver import Process
    from arcbox_guest.sandboxes.model import ExecSpec, Spec
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup, SandboxCgroups
    from arcbox_guest.sandboxes.oci.clients import Client
    from arcbox_guest.sandboxes.oci.namespace import MountNamespace
    from arcbox_guest.sandboxes.oci.runtime import Runtime

    Started = PipedClient | ConsoleSocket


_PF_EXITING: Final = 0x4
"""Of the flags of a process; linux/sched.h."""


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

    _started: int = field(init=False, default=0)
    """Processes, ever."""

    _left_behind: set[ProcessGroup] = field(init=False, factory=set)
    """Groups whose process has ended, and others in it have not."""

    @property
    def id(self) -> str:
        return self.spec.id

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

    async def terminate(self) -> None:
        """Send SIGTERM to all that runs."""
        await self.cgroups.terminate(self._runtime.is_at)

    @asynccontextmanager
    async def process(self, command: ExecSpec) -> AsyncIterator[Process]:
        """Run a process; its tree is killed when the context is left before its end."""
        self.check_alive()
        self._started += 1
        group = self.cgroups.group(self._started)
        started: Started | lookup.CommandError
        try:
            started = await self._namespace.run(self._start, command, group)
        except lookup.CommandError as error:
            started = error
        except OSError as error:
            self.check_alive()
            raise GuestError(f"the process can't be started in sandbox {self.id}: {error.strerror}") from error
        if isinstance(started, lookup.CommandError):
            yield Unstarted.of(command, started)
            return
        try:
            async with _begun(started) as process:
                yield process
        finally:
            with trio.CancelScope(shield=True):  # a SIGKILL and some seconds at most
                await started.client.close()
            self._left_behind = {left for left in (*self._left_behind, group) if not left.remove()}

    def _start(self, command: ExecSpec, group: ProcessGroup) -> Started:
        with self._root() as root:
            identity = users.find(root, command.user or self.spec.user)
            cwd = posixpath.join("/", command.working_dir or self.spec.working_dir)
            _check_directory(root, cwd)
            environment = bundle.environment(self.spec, command, identity)
            lookup.check_size(command.argv, environment)
            lookup.check(
                root, command.argv[0], working_dir=cwd, path=environment.get("PATH", bundle.PATH), identity=identity
            )
        config = bundle.process_config(command, environment, cwd, identity, no_new_privileges=self._no_new_privileges)
        return self._start_client(command, group, json.dumps(config).encode())

    def _start_client(self, command: ExecSpec, group: ProcessGroup, configuration: bytes) -> Started:
        name = group.path.name
        socket = None if command.terminal is None else f"terminal-{name}"
        pid_file = str(self.directory / f"process-{name}.pid")
        argv = partial(
            self._runtime.exec_argv, self.id, pid_file=pid_file, cgroup=group.runtime_name, console_socket=socket
        )
        started = partial(group.has_started, self._runtime.is_at)
        order = Order(argv, configuration, group, started, self.is_ending)
        if socket is None:
            return PipedClient.start(order)
        return ConsoleSocket.start(order, str(self.directory), socket)

    @contextmanager
    def _root(self) -> Iterator[int]:
        """The sandbox's root directory, as its init sees it."""
        try:
            with open_path(f"/proc/{self.init}/root", os.O_PATH | os.O_DIRECTORY) as root:
                self.check_alive()  # else it is the root of another process, which got the same number
                yield root
        except FileNotFoundError:
            self.check_alive()
            raise


@asynccontextmanager
async def _begun(started: Started) -> AsyncIterator[Process]:
    """The process, once its client was told what to run."""
    client = started.client
    if isinstance(started, PipedClient):
        async with processes.piped(started) as piped:
            with _explained(client):
                await client.tell()
            yield piped
        return
    try:
        with _explained(client):
            await client.tell()
            master = await started.receive()
    finally:
        started.close()
    async with processes.with_terminal(client, master) as terminal:
        yield terminal


@contextmanager
def _explained(client: Client) -> Iterator[None]:
    """Blame the end of the sandbox for what it causes."""
    try:
        yield
    except GuestError as error:
        if client.sandbox_is_ending():
            raise UnavailableError("the sandbox ended while the process was started in it") from error
        raise


def _check_directory(root: int, path: str) -> None:
    try:
        with opened(root, path, os.O_PATH | os.O_DIRECTORY):
            pass
    except OSError as error:
        raise InvalidArgumentError(f"the working directory {path} can't be used: {error.strerror}") from error
