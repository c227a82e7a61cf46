"""This process's own stdin, stdout and stderr, in bytes, for as long as others may hold their other ends."""

from __future__ import annotations

import base64
import errno
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click
import trio

from arcbox_client.commands._output import as_plain, show_json
from arcbox_client.errors import AgentError
from arcbox_client.streams import KILLED, KillReason
from arcbox_protocol import sandbox_v1

if TYPE_CHECKING:
    from typing import TextIO

    from arcbox_client.client import AgentClient
    from arcbox_client.executions import ExecutionHandle, Exited
    from arcbox_client.streams import ExecSession, OutputChunk, RunSession

_KILL_REASONS: Final[dict[KillReason, str]] = {
    "oom": "out of memory (oom)",
    "timeout": "its time was up (timeout)",
    "removed": "its sandbox was removed (removed)",
    "expired": "the time of its sandbox was up (expired)",
}

_READ_SIZE = 64 * 1024


def descriptor(stream: TextIO | None) -> int | None:
    """The descriptor of sys.stdin and its like; None when this process was started without.

    Never just 0, 1 or 2: where these were closed, they are anybody's by now, such as the connection to the agent.
    """
    return None if stream is None else stream.fileno()


async def read(source: int) -> bytes:
    """The next bytes of a file, pipe, socket or terminal; empty at the end.

    Leaves the descriptor in blocking mode: it is shared with the shell, and whoever else uses it.
    """
    while True:
        try:
            await trio.lowlevel.wait_readable(source)
        except PermissionError:  # epoll's word for a file, which is always readable
            await trio.lowlevel.checkpoint()
        try:
            return os.read(source, _READ_SIZE)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno == errno.EIO:  # the terminal is gone
                return b""
            raise


async def write(target: int | None, data: bytes) -> None:
    """Write all of `data`; nowhere when `target` is None."""
    left = memoryview(data if target is not None else b"")
    while left and target is not None:
        try:
            left = left[os.write(target, left) :]
        except BlockingIOError:  # somebody who shares it wants it so
            await trio.lowlevel.wait_writable(target)


async def show(session: RunSession, *, as_json: bool) -> int:
    """Write a process's output to stdout and stderr as it comes; returns its exit code.

    In JSON: a line for each piece, and one for the end, as the wire has them, with data in base64.
    """
    targets = {"stdout": descriptor(sys.stdout), "stderr": descriptor(sys.stderr)}
    async for piece in session:
        if as_json:
            _show_json(piece)
        else:
            await write(targets.get(piece.stream), piece.data)
    exit_code = await session.wait()
    if as_json:
        show_json({"stream": "exit", "exit_code": exit_code})
    return exit_code


def _show_json(piece: OutputChunk) -> None:
    plain = as_plain(sandbox_v1.RunOutput(stream=piece.stream, data=piece.data))
    show_json({name: plain[name] for name in ("stream", "data")})


async def show_execution(
    execution: ExecutionHandle,
    *,
    start: tuple[int, int] = (0, 0),
    stop: tuple[int, int] | None = None,
    as_json: bool,
) -> Exited | None:
    """Write an execution's output to stdout and stderr, and return how it ended.

    Output that the agent has not kept is a line on stderr.

    Args:
        execution: which.
        start: offsets of stdout and stderr to begin at.
        stop: offsets at which both have been shown; then it returns None, whether the execution has ended or not.
        as_json: whether to write lines of JSON.
    """
    targets = {"stdout": descriptor(sys.stdout), "stderr": descriptor(sys.stderr), "pty": descriptor(sys.stdout)}
    ends = {"stdout": start[0], "stderr": start[1], "pty": start[0]}

    def shown() -> bool:
        return stop is not None and max(ends["stdout"], ends["pty"]) >= stop[0] and ends["stderr"] >= stop[1]

    if shown():
        return None
    async with execution.attach(stdout_offset=start[0], stderr_offset=start[1]) as output:
        async for piece in output:
            missing = piece.offset - ends[piece.channel]
            if missing > 0:
                click.echo(f"arcboxctl: {missing} bytes of {piece.channel} are not kept any more", err=True)
            ends[piece.channel] = piece.offset + len(piece.data)
            if as_json:
                data = base64.b64encode(piece.data).decode()
                show_json({"stream": piece.channel, "offset": piece.offset, "data": data})
            else:
                await write(targets[piece.channel], piece.data)
            if shown():
                return None
    exited = output.exited or await execution.wait()
    if as_json:
        show_json({"stream": "exit", "exit_code": exited.exit_code})
    elif exited.error:
        click.echo(f"arcboxctl: {exited.error}", err=True)
    return exited


async def tell_why_killed(client: AgentClient, sandbox_id: str, exit_code: int) -> None:
    """Say on stderr why a process was killed, if it was and the agent knows."""
    if exit_code == KILLED and (reason := await client.kill_reason(sandbox_id)):
        click.echo(f"arcboxctl: killed: {_KILL_REASONS[reason]}", err=True)


async def copy_stdin(session: ExecSession) -> None:
    """Send stdin to a process, and its end. Raises nothing: whoever reads the output meets the agent's errors, too."""
    source = descriptor(sys.stdin)
    with suppress(AgentError):
        try:
            while source is not None and (data := await read(source)):
                await session.send_stdin(data)
        except OSError as error:  # it is open for writing only, or its disk fails
            click.echo(f"arcboxctl: cannot read stdin: {(error.strerror or str(error)).lower()}", err=True)
        await session.close_stdin()


async def no_stdin(session: ExecSession) -> None:
    """Let a process's stdin be empty. Raises nothing, as `copy_stdin`."""
    with suppress(AgentError):
        await session.close_stdin()
