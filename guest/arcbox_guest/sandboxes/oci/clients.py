"""Clients of the runtime that run a process each, and end with its exit code.

A client reads the process's configuration from a pipe, which is written after the client was put into its cgroup: it
cannot have started anything before, so no descendant is ever outside of the group that is killed.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.child import Child
from arcbox_guest.errors import TimedOutError
from arcbox_guest.sandboxes.model import SIGNALLED
from arcbox_guest.sandboxes.oci.pipes import End, Input, enlarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup

_PATIENCE: Final = 10.0
"""Seconds in which a client must have read a configuration for which its pipe has no room: hardly any."""

_STARTING: Final = 10.0
"""Seconds in which a runtime must have started the process: usually 0.01."""

KILLED: Final = SIGNALLED + signal.SIGKILL

_FAILURES: Final = (1, 255)
"""What runtimes end with when they can't start a process."""


@frozen
class Order:
    """A process that is to be run."""

    argv: Callable[[int], list[str]]
    """The command line of the client, given the open file that has the configuration."""

    configuration: bytes
    group: ProcessGroup
    started: Callable[[], bool]
    """Whether there is a process in the group that is not the runtime's own any more."""

    sandbox_is_ending: Callable[[], bool]


@frozen
class _Rest:
    """The part of a configuration that did not fit into its pipe."""

    pipe: int
    configuration: memoryview


@define(eq=False)
class Client:
    """A client that was started, and has perhaps not yet been told all that it must know."""

    child: Child
    group: ProcessGroup
    _order: Order
    _rest: _Rest | None
    """What it must still be told; None when it knows all."""

    _deadline: float = field(init=False, default=0.0)
    """By which the process must have been started, in Trio's time."""

    @classmethod
    def start(cls, order: Order, stdin: int, stdout: int, stderr: int, *, cwd: str | None = None) -> Client:
        """Start a client with these files, in its cgroup. Blocks; to be called in the driver's namespace.

        Raises:
            OSError: it can't be.
        """
        with ExitStack() as stack:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, reader)
            on_failure = stack.enter_context(ExitStack())
            on_failure.callback(os.close, writer)
            order.group.create()
            on_failure.callback(order.group.remove)
            child = Child.start(
                order.argv(reader), stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(reader,), cwd=cwd
            )
            on_failure.callback(child.discard)
            with suppress(ProcessLookupError):  # it has ended: its exit code, and what it wrote, say why
                order.group.enter(child.pid)
            rest = _tell_at_once(writer, order.configuration)
            on_failure.pop_all()
        return cls(child, order.group, order, rest)

    async def tell(self) -> None:
        """Have it run the process, if it does not already. Must be called once.

        Raises:
            TimedOutError: it does not read.
        """
        self._deadline = trio.current_time() + _STARTING
        if self._rest is None:
            return
        end = End(self._rest.pipe)
        try:
            with trio.fail_after(_PATIENCE):
                await Input(end).send(self._rest.configuration)
        except trio.BrokenResourceError:
            pass  # it has ended
        except trio.TooSlowError:
            raise TimedOutError("the OCI runtime did not begin with the process in time") from None
        finally:
            end.close()

    async def wait(self) -> int:
        """Wait for the process's end; its exit code, or 128 + n when signal n killed it.

        Raises:
            TimedOutError: the runtime hangs, and has not even started it. It is killed.
        """
        with trio.move_on_at(self._deadline):
            await self.child.wait()
        if not self.child.ended() and not self._order.started():
            self.group.kill()
            if not self.sandbox_is_ending():
                raise TimedOutError("the OCI runtime did not start the process in time")
        exit_code = await self.child.wait()
        if exit_code in _FAILURES and self.sandbox_is_ending():
            return KILLED  # the sandbox's end kills all that is in it; the client was too late to see that
        return exit_code

    def sandbox_is_ending(self) -> bool:
        """Whether that may be why something failed."""
        return self._order.sandbox_is_ending()

    def kill(self) -> None:
        """Kill the process's whole tree unless the process has ended."""
        if not self.child.ended():
            self.group.kill()

    async def close(self) -> None:
        """Kill the tree as above, and forget it."""
        self.kill()
        await self.child.close()


@define(eq=False)
class PipedClient:
    """A client, and the agent's ends of its pipes."""

    client: Client
    stdin: int
    stdout: int
    stderr: int

    @classmethod
    def start(cls, order: Order) -> PipedClient:
        """Start a client with pipes. Blocks; to be called in the driver's namespace.

        Raises:
            OSError: it can't be.
        """
        with ExitStack() as theirs, ExitStack() as ours:
            read_in, write_in = _pipe(theirs, ours, ours_is_reader=False)
            read_out, write_out = _pipe(theirs, ours, ours_is_reader=True)
            read_err, write_err = _pipe(theirs, ours, ours_is_reader=True)
            enlarge(write_out)
            client = Client.start(order, read_in, write_out, write_err)
            ours.pop_all()
        return cls(client, write_in, read_out, read_err)


def _tell_at_once(pipe: int, configuration: bytes) -> _Rest | None:
    """Write what a client must know, as far as that is possible without waiting for it."""
    os.set_blocking(pipe, False)
    try:
        written = os.write(pipe, configuration)
    except BrokenPipeError:
        written = len(configuration)  # it has ended
    if written < len(configuration):
        return _Rest(pipe, memoryview(configuration)[written:])
    os.close(pipe)
    return None


def _pipe(theirs: ExitStack, ours: ExitStack, *, ours_is_reader: bool) -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    (ours if ours_is_reader else theirs).callback(os.close, reader)
    (theirs if ours_is_reader else ours).callback(os.close, writer)
    return reader, writer
