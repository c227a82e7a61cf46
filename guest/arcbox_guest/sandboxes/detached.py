"""What a detached process is: one whose parent is not the agent. It, its output and its exit code outlive that.

Drivers make them (`driver.Driver.start_detached`); the contract is in `tests/guest/sandboxes`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arcbox_guest.sandboxes.model import ExecSpec, TerminalSize

DEFAULT_KEPT: Final = 16 * 1024 * 1024
"""Bytes of output that are kept for each channel; the oldest go first."""


class Channel(StrEnum):
    """A stream of output, whose bytes are counted from its first one. All that a terminal shows is STDOUT."""

    STDOUT = "stdout"
    STDERR = "stderr"


@frozen
class Piece:
    """Some bytes of a channel."""

    offset: int
    """Of the first of them; larger than what was asked for where the bytes before are no longer kept."""

    data: bytes
    """Up to some hundred KiB; empty at the end."""


@frozen(kw_only=True)
class DetachedSpec:
    """A process that is to be started."""

    name: str
    """Its own in the sandbox: that of a file, too."""

    command: ExecSpec
    stdin: bool = False
    """Whether it gets a stdin that can be written to; a terminal always has one."""

    merged: bool = False
    """Whether its stderr is its stdout."""

    facts: Mapping[str, str | int | float | bool] = {}
    """Kept for whoever finds the process after a restart of the agent."""


@frozen(kw_only=True)
class Exit:
    """How a process ended."""

    code: int
    """128 + n when signal n killed it."""

    at: float
    """Unix seconds."""

    error: str = ""
    """Why it was not started, for people."""


class DetachedProcess(Protocol):
    """A process that runs, or has ended. `run` must be running while others wait for something."""

    @property
    def name(self) -> str:
        """As in its spec."""

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """As in its spec."""

    @property
    def terminal(self) -> bool:
        """Whether it has one."""

    @property
    def exit(self) -> Exit | None:
        """None while it runs."""

    @property
    def stdin_written(self) -> int:
        """Bytes of input that were accepted, all in all."""

    @property
    def stdin_closed(self) -> bool:
        """Whether no more is accepted."""

    async def run(self) -> Exit:
        """See it to its end, and its output. Cancelled, it leaves the process running."""

    async def wait(self) -> Exit:
        """Wait for its end. Any number may."""

    def length(self, channel: Channel) -> int:
        """Bytes that it ever wrote to a channel."""

    async def read(self, channel: Channel, offset: int) -> Piece:
        """What it wrote from an offset on, or from the oldest byte after it that is kept; waits for some.

        Empty when it has ended, and all was read. What it has left behind may still write, and is not waited for.

        Raises:
            OutOfRangeError: it has not written so much.
        """

    async def write_stdin(self, offset: int, data: bytes, *, last: bool = False) -> None:
        """Accept input that begins at an offset, and `last` its end. What was accepted before is not again.

        Waits while too much of it waits for the process. Accepts nothing once its stdin is closed.

        Raises:
            OutOfRangeError: less was accepted before: something is missing.
        """

    def resize(self, size: TerminalSize) -> None:
        """Tell its terminal its size; without one, nothing happens."""

    async def signal(self, number: int) -> None:
        """Send it a signal: it, not its descendants. Nothing happens when it has ended."""

    async def kill(self) -> None:
        """Kill it with all its descendants."""

    async def forget(self) -> None:
        """Remove all that is kept of it, now that it has ended."""
