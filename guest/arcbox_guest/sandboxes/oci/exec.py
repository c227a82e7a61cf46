"""Processes in a sandbox, each run by a client of the OCI runtime, which ends with the process's exit code.

A client reads the process's configuration from a pipe, which is written after the client was put into its cgroup: it
cannot have started anything before, so no descendant is ever outside of the group that is killed.

For a process with a terminal, the runtime opens the terminal and sends its master to a socket. As relays between two
terminals runtimes won't do: crun (1.8) takes a process's first output for an error message of its own, and passes no
resize on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.child import Child
from arcbox_guest.errors import GuestError, TimedOutError
from arcbox_guest.sandboxes.model import SIGNALLED
from arcbox_guest.sandboxes.oci.streams import PipeOutput, StreamEnd, TerminalInput, enlarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_guest.sandboxes.model import TerminalSize
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup
    from arcbox_guest.sandboxes.oci.lookup import CommandError

STARTING: Final = 10.0
"""Seconds in which a runtime must have started a process, and opened its terminal: usually 0.01."""

_KILLED: Final = SIGNALLED + signal.SIGKILL

_FAILURES: Final = (1, 255)
"""What runtimes end with when they can't start a process."""

_COMPLAINT: Final = 4096
"""Bytes of what a client says of its failure."""


@frozen(kw_only=True)
class ExecRequest:
    """A process that is to be run."""

    argv: Callable[[int], list[str]]
    """The command line of the client, given the open file that has the configuration."""

    configuration: bytes
    group: ProcessGroup
    console_socket: str = ""
    """The path of the socket that the command line names; empty without a terminal."""

    has_started: Callable[[], bool]
    """Whether there is a process in the group that is not the runtime's own any more."""

    sandbox_is_ending: Callable[[], bool]


@define(eq=False)
class ExecProcess:
    """A process, and the client that runs it. To be begun once, and closed."""

    _request: ExecRequest
    _child: Child
    _configuration: StreamEnd
    """Where the client reads it."""

    _console: ConsoleSocket | None
    _ends: list[StreamEnd]
    """Of stdin, stdout and stderr; with a terminal, its master once there is one."""

    _terminal: TerminalInput | None = field(init=False, default=None)
    _stdout: PipeOutput | None = field(init=False, default=None)
    stderr: PipeOutput | None = field(init=False, default=None)
    _deadline: float = field(init=False, default=0.0)
    """By which the process must have been started, in Trio's time."""

    def __attrs_post_init__(self) -> None:
        if self._console is None:
            _stdin, stdout, stderr = self._ends
            self._stdout, self.stderr = PipeOutput(stdout), PipeOutput(stderr)

    @classmethod
    def start(cls, request: ExecRequest) -> ExecProcess:
        """Start a client, in its cgroup. Blocks, for own files only; to be called in the driver's namespace.

        Raises:
            OSError: it can't be.
        """
        with ExitStack() as theirs, ExitStack() as ours:
            reader, writer = _pipe(theirs, ours, ours_is_reader=False)
            console, pipes = None, []
            if request.console_socket:
                console = ConsoleSocket.listen(request.console_socket)
                ours.callback(console.close)
                stdio = (subprocess.DEVNULL, subprocess.DEVNULL, console.complaint)
            else:
                read_in, write_in = _pipe(theirs, ours, ours_is_reader=False)
                read_out, write_out = _pipe(theirs, ours, ours_is_reader=True)
                read_err, write_err = _pipe(theirs, ours, ours_is_reader=True)
                enlarge(write_out)
                stdio, pipes = (read_in, write_out, write_err), [write_in, read_out, read_err]
            request.group.create()
            ours.callback(request.group.remove)
            # A socket's address has no room for long paths: the client finds it in its working directory.
            cwd = os.path.dirname(request.console_socket) or None
            stdin, stdout, stderr = stdio
            child = Child.start(
                request.argv(reader), stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(reader,), cwd=cwd
            )
            ours.callback(child.discard)
            with suppress(ProcessLookupError):  # it has ended: its exit code, and what it wrote, say why
                request.group.enter(child.pid)
            process = cls(request, child, StreamEnd(writer), console, [StreamEnd(pipe) for pipe in pipes])
            ours.pop_all()
        return process

    async def begin(self) -> None:
        """Have the client run the process; wait for its terminal, if it has one.

        Raises:
            TimedOutError: the runtime hangs.
            GuestError: it did not open a terminal, and says why.
        """
        self._deadline = trio.current_time() + STARTING
        try:
            with trio.fail_at(self._deadline):
                await self._tell()
                if self._console is not None:
                    self._have_terminal(await self._console.receive(self._child))
        except trio.TooSlowError:
            raise TimedOutError("the OCI runtime did not begin with the process in time") from None

    @property
    def stdout(self) -> PipeOutput:
        if self._stdout is None:
            raise trio.ClosedResourceError("the process was not begun")
        return self._stdout

    @property
    def failure(self) -> str:
        return ""

    async def send_stdin(self, data: bytes) -> None:
        if self._terminal is not None:
            await self._terminal.send(data)
        else:
            await self._ends[0].send(data)

    async def close_stdin(self) -> None:
        if self._terminal is not None:
            await self._terminal.end()
        else:
            self._ends[0].close()
            await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        if self._terminal is not None:
            self._terminal.resize(size)

    async def wait(self) -> int:
        """Wait for the process's end; its exit code, or 128 + n when signal n killed it.

        Raises:
            TimedOutError: the runtime hangs, and has not even started it. It is killed.
        """
        with trio.move_on_at(self._deadline):
            await self._child.wait()
        if not self._child.ended() and not self._request.has_started():
            self._request.group.kill()
            if not self._request.sandbox_is_ending():
                raise TimedOutError("the OCI runtime did not start the process in time")
        exit_code = await self._child.wait()
        if exit_code in _FAILURES and self._request.sandbox_is_ending():
            return _KILLED  # the sandbox's end kills all that is in it; the client was too late to see that
        return exit_code

    async def kill(self) -> None:
        self._request.group.kill()
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Kill the whole tree unless the process has ended, and forget it."""
        if not self._child.ended():
            # First: who sees the end of its stdin may end by itself, and be taken for one that did.
            self._request.group.kill()
        for end in (self._configuration, *self._ends):
            end.close()
        if self._console is not None:
            self._console.close()
        await self._child.close()

    async def _tell(self) -> None:
        with suppress(trio.BrokenResourceError):  # it has ended: its exit code, and what it wrote, say why
            await self._configuration.send(self._request.configuration)
        self._configuration.close()

    def _have_terminal(self, master: int) -> None:
        end = StreamEnd(master)
        self._ends = [end]
        self._terminal, self._stdout = TerminalInput(end), PipeOutput(end)


@define(eq=False)
class ConsoleSocket:
    """The socket to which a client sends the master of the process's terminal."""

    _path: str
    _listener: socket.socket
    complaint: int
    """An open file for what the client says of its failure."""

    _connection: socket.socket | None = field(init=False, default=None)

    @classmethod
    def listen(cls, path: str) -> ConsoleSocket:
        """Have a socket with that path, however long it is.

        Raises:
            OSError: it can't be.
        """
        directory, name = os.path.split(path)
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{opened}/{name}")
            finally:
                os.close(opened)
            stack.callback(os.unlink, path)
            listener.listen(1)
            complaint = os.memfd_create("complaint", os.MFD_CLOEXEC)
            stack.pop_all()
        return cls(path, listener, complaint)

    async def receive(self, client: Child) -> int:
        """Wait for the master; an open file.

        Raises:
            GuestError: the client has ended without having sent it; why.
        """
        while True:
            ended = client.ended()  # asked before the look: what it has sent before its end is there then
            master = self._take()
            if master is not None:
                return master
            if ended:
                raise GuestError(self._failure())
            readable = self._connection or self._listener
            await _any_of(client.wait, partial(trio.lowlevel.wait_readable, readable))

    def close(self) -> None:
        """Remove the socket."""
        if self._connection is not None:
            self._connection.close()
        self._listener.close()
        os.close(self.complaint)
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _take(self) -> int | None:
        """What has been sent, without waiting for it."""
        try:
            if self._connection is None:
                self._connection, _ = self._listener.accept()
                self._connection.setblocking(False)
            _, received, _, _ = socket.recv_fds(self._connection, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionResetError):
            return None
        if not received:  # it has closed the connection: its end tells more
            self._connection.close()
            self._connection = None
            return None
        return received[0]

    def _failure(self) -> str:
        text = os.pread(self.complaint, _COMPLAINT, 0).decode("utf-8", "replace").strip()
        return f"the process could not be started: {text or 'the OCI runtime does not say why'}"


@define(eq=False)
class TextOutput:
    """Output that is there from the beginning."""

    _text: bytes = b""

    async def receive(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        text, self._text = self._text, b""
        return memoryview(text)

    def unread(self) -> int:
        return len(self._text)


@define(eq=False)
class UnstartedProcess:
    """Stand-in for a command that can't be executed: what a shell would have said and returned."""

    _exit_code: int
    failure: str
    stdout: TextOutput
    stderr: TextOutput | None

    @classmethod
    def of(cls, error: CommandError, *, terminal: bool) -> UnstartedProcess:
        if terminal:
            return cls(error.exit_code, str(error), TextOutput(f"{error}\r\n".encode()), None)
        return cls(error.exit_code, str(error), TextOutput(), TextOutput(f"{error}\n".encode()))

    async def send_stdin(self, data: bytes) -> None:  # noqa: ARG002  the interface's
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("it was not started")

    async def close_stdin(self) -> None:
        await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        """Nothing: it has no terminal."""

    async def wait(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._exit_code

    async def kill(self) -> None:
        await trio.lowlevel.checkpoint()


async def _any_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Wait until the first of several waits is over; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[object]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


def _pipe(theirs: ExitStack, ours: ExitStack, *, ours_is_reader: bool) -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    (ours if ours_is_reader else theirs).callback(os.close, reader)
    (theirs if ours_is_reader else ours).callback(os.close, writer)
    return reader, writer
