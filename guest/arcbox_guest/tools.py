"""Programs of the system that do one thing and end: blkid, mkfs, modprobe."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from arcbox_guest.child import Child
from arcbox_guest.errors import GuestError, NotSupportedError, TimedOutError

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the programs of a system are, whatever PATH the agent was started with."""

_OUTPUT: Final = 64 * 1024
"""Bytes of output that are kept unless more are asked for."""


_CLOSING: Final = 6.0
"""Seconds for killing one that was given up; `Child.close` takes 5 at most."""


@frozen
class ToolResult:
    """How a program ended."""

    status: int
    """Its exit code, or 128 + n when signal n killed it."""

    output: str
    """Standard output and standard error, as they came."""

    @property
    def last_line(self) -> str:
        """For an error text."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else f"status {self.status}"


async def run_tool(*argv: str, timeout: float, limiter: trio.CapacityLimiter, kept: int = _OUTPUT) -> ToolResult:  # noqa: ASYNC109  killed at its end, which no scope of a caller's does for a process that waits for a device
    """Run a program to its end. One that waits for a device that hangs is given up at its deadline.

    Args:
        argv: its name, which is looked for in `SYSTEM_PATH`, and its arguments.
        timeout: seconds after which it is killed.
        limiter: for the thread that starts it.
        kept: bytes of its output that are returned, from the beginning.

    Raises:
        NotSupportedError: it is not installed.
        TimedOutError: it took longer.
        GuestError: it can't be started.
    """
    program = shutil.which(argv[0], path=SYSTEM_PATH)
    if program is None:
        raise NotSupportedError(f"{argv[0]} is not installed")
    environment = {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    output = os.memfd_create(argv[0], os.MFD_CLOEXEC)
    try:
        child = await trio.to_thread.run_sync(
            _start, (program, *argv[1:]), output, environment, limiter=limiter, abandon_on_cancel=False
        )
        try:
            with trio.fail_after(timeout):
                status = await child.wait()
        except trio.TooSlowError:
            raise TimedOutError(f"{argv[0]} did not end within {timeout:g} s") from None
        finally:
            with trio.move_on_after(_CLOSING, shield=True):
                await child.close()
        return ToolResult(status, os.pread(output, kept, 0).decode("utf-8", "replace"))
    finally:
        os.close(output)


def _start(argv: tuple[str, ...], output: int, environment: Mapping[str, str]) -> Child:
    try:
        return Child.start(argv, stdout=output, stderr=output, cwd="/", env=environment)
    except OSError as error:
        raise GuestError(f"{argv[0]} can't be started: {error}") from error
