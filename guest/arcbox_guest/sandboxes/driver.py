"""What a driver is: one way to isolate processes. It knows nothing of states, events or the wire.

`tests/guest/sandboxes/` has the contract, written once against these protocols; every driver is held to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from arcbox_guest.sandboxes.detached import DetachedProcess, DetachedSpec
    from arcbox_guest.sandboxes.model import ExecSpec, Spec, Statistics, TerminalSize


class OutputStream(Protocol):
    """What a process writes to one of its streams."""

    async def receive(self) -> memoryview:
        """The next bytes, valid until the next call; empty at the end.

        Up to some hundred KiB at a time. Whoever does not ask lets the pipe fill up, and the process wait.
        """

    def unread(self) -> int:
        """Bytes that wait in the pipe now."""


class Process(Protocol):
    """A process that runs in a sandbox."""

    @property
    def stdout(self) -> OutputStream:
        """What it writes; with a terminal, all of it."""

    @property
    def stderr(self) -> OutputStream | None:
        """None with a terminal."""

    @property
    def failure(self) -> str:
        """Why it could not be executed, for people: its command was not found, say. Empty for one that was."""

    async def send_stdin(self, data: bytes) -> None:
        """Write to its stdin; waits while it does not read.

        Raises:
            trio.BrokenResourceError: it closed its stdin, or is gone.
        """

    async def close_stdin(self) -> None:
        """Let it see the end of its stdin (^D on a terminal). Again does nothing."""

    def resize(self, size: TerminalSize) -> None:
        """Tell its terminal its size; without one, nothing happens."""

    async def wait(self) -> int:
        """Wait for its end; its exit code, 128 + n when signal n killed it. Descendants may live on."""

    async def kill(self) -> None:
        """Kill it with all its descendants, those in sessions of their own too. `wait` then returns 137."""


class Driver(Protocol):
    """Makes sandboxes, and runs processes in them. Errors are `guest.errors`, in words for the caller.

    A method that is cancelled leaves nothing half done that `destroy` would not clear away.
    """

    @property
    def name(self) -> str:
        """For settings, records and the log."""

    async def prepare(self) -> None:
        """Get ready for the other methods. It takes a processor, no storage: however long, it is no sign of a fault."""

    async def check(self, spec: Spec) -> None:
        """Find out, without making anything, what would keep a sandbox from being created.

        Raises:
            InvalidArgumentError: no such root file system, source of a mount, or user. Not everything can be known.
            NotSupportedError: this machine, or this driver, can't do that.
        """

    async def create(self, spec: Spec) -> Mapping[str, str]:
        """Make a sandbox, and return when processes can run in it: with the facts that `adopt` wants.

        `spec` is complete: no defaults are left to fill in.

        Raises:
            InvalidArgumentError: the spec can't be met: no such root file system, a mount whose source is not there.
            NotSupportedError: this machine, or this driver, can't do that.
            GuestError: it failed; nothing is left behind.
        """

    async def adopt(self, spec: Spec, facts: Mapping[str, str]) -> None:
        """Go on with a sandbox that a former agent's driver has made, and that should still run.

        Detached processes in it go on, and what processes that have ended left behind. Those that the former agent ran
        for its peers, who have lost them, are killed.

        Raises:
            UnavailableError: it does not run any more.
            GuestError: it failed.
        """

    def process(self, sandbox_id: str, command: ExecSpec) -> AbstractAsyncContextManager[Process]:
        """Start a process, and kill its whole tree when the context is left before it ended.

        A command that is not found ends with 127, one that can't be executed with 126, with a line on stderr (stdout,
        with a terminal) as a shell writes it.

        Raises:
            InvalidArgumentError: no such user, or working directory.
            UnavailableError: the sandbox's init is gone.
            GuestError: it could not be started for another reason.
        """

    async def start_detached(self, sandbox_id: str, spec: DetachedSpec) -> DetachedProcess:
        """Start a process that goes on when the agent ends. A command that can't be executed ends at once, as above.

        Raises:
            ConflictError: the sandbox has, or had, one of that name.
            InvalidArgumentError: no such user, or working directory.
            UnavailableError: the sandbox's init is gone.
            GuestError: it could not be started for another reason.
        """

    async def detached(self, sandbox_id: str) -> Sequence[DetachedProcess]:
        """All detached processes that a sandbox has or had, those that a former agent started too.

        Each call makes objects of its own: to be called once, before any is started.
        """

    def root(self, sandbox_id: str) -> AbstractContextManager[int]:
        """A sandbox's root directory as its processes see it, open (O_PATH) for as long as the context lasts.

        It may be entered in any thread.

        Raises:
            UnavailableError: the sandbox's init is gone.
        """

    def network_namespace(self, sandbox_id: str) -> AbstractContextManager[int]:
        """A sandbox's network namespace, open for as long as the context lasts. It may be entered in any thread.

        Raises:
            UnavailableError: the sandbox's init is gone.
        """

    async def pause(self, sandbox_id: str) -> None:
        """Freeze all processes of a sandbox, and return when none runs any more. Again does nothing.

        They keep their memory, and can still be killed. `root` and `network_namespace` work as before. What is
        cancelled, or fails, leaves them running.

        Raises:
            UnavailableError: its init is gone.
            TimedOutError: some can't be frozen: they wait for a device, say.
        """

    async def resume(self, sandbox_id: str) -> None:
        """Let them go on. Again does nothing."""

    def is_paused(self, sandbox_id: str) -> bool:
        """Whether they are frozen, by whatever agent. Does not wait."""

    async def terminate(self, sandbox_id: str) -> None:
        """Send SIGTERM to all processes of a sandbox but its init."""

    async def idle(self, sandbox_id: str) -> None:
        """Wait until no process but its init runs in a sandbox."""

    async def ended(self, sandbox_id: str) -> str:
        """Wait until a sandbox's init has ended without having been asked to; why, for people."""

    async def stop(self, sandbox_id: str) -> None:
        """Kill all that runs in a sandbox, its init too; its files stay. Again does nothing."""

    async def destroy(self, sandbox_id: str) -> None:
        """Stop a sandbox, and remove its mounts, cgroups and files. Again does nothing."""

    async def statistics(self, sandbox_id: str) -> Statistics:
        """What a sandbox uses now.

        Raises:
            UnavailableError: its init is gone.
        """

    def out_of_memory_kills(self, sandbox_id: str) -> int:
        """How many processes its memory limit has cost a sandbox; 0 when that can't be found out. Does not wait."""

    async def checkpoint(self, sandbox_id: str) -> tuple[str, ...]:
        """Keep the files of a sandbox as they are, while nothing but its init runs; it goes on with a new layer above.

        A driver whose snapshots hold more than files keeps that as well, by the same names.

        Returns:
            What `Spec.layers` takes, of any number of sandboxes with the same root file system.

        Raises:
            UnavailableError: its init is gone.
            GuestError: it failed, and the sandbox is as before.
        """

    async def flatten(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """What a checkpoint has returned, in fewer layers if there are many: it may take as long as there are files.

        The layers themselves stay as they are, for those who use them.

        Raises:
            GuestError: it failed; the layers are not there any more, say.
        """

    async def remove_unused(self, used: Callable[[], Collection[str]]) -> None:
        """Remove what checkpoints have kept and no sandbox uses, but for what is named.

        Args:
            used: names it. It is asked when the driver knows what no sandbox uses: who asked before could miss a
                snapshot whose sandbox has been removed since.

        Raises:
            GuestError: it failed.
        """

    async def listening(self, sandbox_id: str) -> set[int]:
        """The TCP ports on which something in a sandbox listens now.

        Raises:
            UnavailableError: its init is gone.
        """

    async def existing(self) -> Sequence[str]:
        """The ids of the sandboxes of which anything is left on this machine, those of a former agent too."""

    async def close(self) -> None:
        """Let go of everything that is not a sandbox's. The driver can be used again."""
