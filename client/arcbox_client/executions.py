"""Executions as objects: their output by offset, their stdin, their end, over as many connections as it takes."""

from __future__ import annotations

import math
import signal as signals
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

import trio
from attrs import define, field, frozen

from arcbox_client._background import beside
from arcbox_client.errors import AgentError, ConnectError, ConnectionLostError, UnavailableError
from arcbox_client.streams import Completed
from arcbox_protocol import arcbox_sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from typing import TypeVar, Unpack

    from arcbox_client._sandbox_requests import ExecOptions
    from arcbox_client.client import AgentClient
    from arcbox_protocol import Buffer

    _T = TypeVar("_T")

Channel = Literal["stdout", "stderr", "pty"]

_CHANNELS: Final[dict[int, Channel]] = {
    arcbox_sandbox_v1.STDIO_CHANNEL_STDOUT: "stdout",
    arcbox_sandbox_v1.STDIO_CHANNEL_STDERR: "stderr",
    arcbox_sandbox_v1.STDIO_CHANNEL_PTY: "pty",
}

_STDIN_CHUNK: Final = 64 * 1024
"""Bytes per write: small enough that an agent's buffer takes it in one go."""

_LONG_POLL: Final = 20
"""Seconds for which one request waits for the end of an execution."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
"""Seconds between tries to connect again; each is twice as long as the one before."""


_NOT_NOW: Final = (ConnectError, ConnectionLostError, UnavailableError)
"""What an agent that restarts makes of a request: it may be tried again."""


@frozen
class ExecutionOutput:
    """Bytes that an execution wrote, cut anywhere; `offset` is how many its channel had before them."""

    channel: Channel
    offset: int
    data: bytes


@frozen
class Exited:
    """How an execution ended."""

    exit_code: int
    """128 + n for one that signal n killed."""

    signal: int
    """0 for one that was not killed."""

    error: str
    """Why it could not be started, or was killed; or empty."""

    @classmethod
    def of(cls, execution: arcbox_sandbox_v1.Execution) -> Exited:
        """How an execution ended that has."""
        status = execution.exit_status
        code = 128 + status.signal if status.HasField("signal") else status.code
        return cls(code, status.signal, execution.error)


@define(eq=False)
class ExecutionHandle:
    """A process in a sandbox that outlives this connection and the agent.

    Where the connection is lost, or the agent restarts, everything here connects again and goes on where it was, for
    up to `patience` seconds without success. A client whose streams share one connection can't.
    """

    _client: AgentClient
    sandbox_id: str
    id: str
    patience: float = 60.0
    _stdin_offset: int | None = field(init=False, default=None)
    _stdin: trio.StrictFIFOLock = field(init=False, factory=trio.StrictFIFOLock)
    """Held for a whole write: those of several tasks come one after the other, in the order of their calls."""

    async def begin(self, cmd: Sequence[str], *, stdin: bool = False, **options: Unpack[ExecOptions]) -> None:
        """Start it; one that exists already is left as it is. Arguments as `AgentClient.execution_start` has them."""
        await self._persistently(
            lambda client: client.execution_start(self.sandbox_id, cmd, execution_id=self.id, stdin=stdin, **options)
        )

    async def info(self) -> arcbox_sandbox_v1.Execution:
        """All that the agent knows of it."""
        return await self._persistently(lambda client: client.execution_wait(self.sandbox_id, self.id))

    async def wait(self) -> Exited:
        """Wait until it has ended."""
        while True:
            info = await self._persistently(
                lambda client: client.execution_wait(self.sandbox_id, self.id, timeout=_LONG_POLL)
            )
            if info.state == arcbox_sandbox_v1.EXECUTION_STATE_EXITED:
                return Exited.of(info)

    @asynccontextmanager
    async def attach(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> AsyncIterator[Attachment]:
        """Its output from these offsets on: `async with execution.attach() as output: async for piece in output:`."""
        attachment = Attachment(self._client, self.sandbox_id, self.id, self._pauses(), stdout_offset, stderr_offset)
        async with beside(attachment.follow):
            yield attachment

    async def collect(self) -> Completed:
        """All of its output that the agent has kept, and its exit code, once it has ended. A terminal's is stdout."""
        parts: dict[Channel, list[bytes]] = {"stdout": [], "stderr": [], "pty": []}
        async with self.attach() as output:
            async for piece in output:
                parts[piece.channel].append(piece.data)
        return Completed(
            (await self.wait()).exit_code, b"".join(parts["stdout"] or parts["pty"]), b"".join(parts["stderr"])
        )

    async def write_stdin(self, data: Buffer) -> None:
        """Write to its stdin; waits while the process does not read."""
        view = memoryview(data).cast("B")
        async with self._stdin:
            for start in range(0, len(view), _STDIN_CHUNK):
                await self._write(bytes(view[start : start + _STDIN_CHUNK]))

    async def close_stdin(self) -> None:
        """Let it see the end of its stdin."""
        async with self._stdin:
            await self._write(b"", eof=True)

    async def signal(self, signal: int) -> None:
        """Send it a signal, such as `signal.SIGTERM`."""
        async with self._client.reconnected() as client:
            await client.execution_signal(self.sandbox_id, self.id, signal)

    async def kill(self) -> None:
        """Send it SIGKILL."""
        await self.signal(signals.SIGKILL)

    async def resize(self, columns: int, rows: int) -> None:
        """Tell its terminal the new size."""
        async with self._client.reconnected() as client:
            await client.execution_resize(self.sandbox_id, self.id, columns, rows)

    async def _write(self, data: bytes, *, eof: bool = False) -> None:
        """Write at our own offset, so that a write that is tried again changes nothing."""
        if self._stdin_offset is None:
            status = await self._persistently(lambda client: client.execution_stdin_status(self.sandbox_id, self.id))
            self._stdin_offset = status.bytes_written
        end = self._stdin_offset + len(data)
        while True:
            left = data[len(data) - (end - self._stdin_offset) :]
            self._stdin_offset = await self._write_at(self._stdin_offset, left, eof=eof)
            if self._stdin_offset >= end:
                return

    async def _write_at(self, offset: int, data: bytes, *, eof: bool) -> int:
        async def write(client: AgentClient) -> arcbox_sandbox_v1.StdinStatus:
            return await client.execution_write_stdin(self.sandbox_id, self.id, data, offset=offset, eof=eof)

        return (await self._persistently(write)).bytes_written

    async def _persistently(self, request: Callable[[AgentClient], Awaitable[_T]]) -> _T:
        """Do a request that may be repeated, over connections of its own where the client can make them."""
        pauses = self._pauses()
        while True:
            try:
                async with self._client.reconnected() as client:
                    return await request(client)
            except _NOT_NOW as error:
                failure = error
            await pauses.sleep_after(failure)

    def _pauses(self) -> _Pauses:
        return _Pauses(self.patience if self._client.can_reconnect else 0.0)


@define(eq=False)
class Attachment:
    """The output of an execution, in order within each channel, nothing twice: `async for piece in output`.

    It ends when the execution has. A piece whose offset is beyond the end of the one before shows what was not kept.
    """

    _client: AgentClient
    _sandbox_id: str
    _execution_id: str
    _pauses: _Pauses
    _stdout_offset: int
    _stderr_offset: int
    exited: Exited | None = field(init=False, default=None)
    """None until the output was read to its end."""

    _error: AgentError | None = field(init=False, default=None)
    _send: trio.MemorySendChannel[ExecutionOutput] = field(init=False)
    _receive: trio.MemoryReceiveChannel[ExecutionOutput] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[ExecutionOutput](0)

    def __aiter__(self) -> Attachment:
        return self

    async def __anext__(self) -> ExecutionOutput:
        """The next piece.

        Raises:
            NotFoundError: there is no such execution.
            ConnectionLostError: the connection is lost, and can't be made again.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None

    async def follow(self) -> None:
        """Hand out what comes, and connect again where the connection is lost. Raises nothing: the consumer gets it."""
        with self._send:
            try:
                while True:
                    try:
                        await self._follow_one_connection()
                    except _NOT_NOW as error:
                        failure = error
                    else:
                        break
                    await self._pauses.sleep_after(failure)
            except AgentError as error:
                self._error = error

    async def _follow_one_connection(self) -> None:
        async with self._client.execution_attach(
            self._sandbox_id,
            self._execution_id,
            stdout_offset=self._stdout_offset,
            stderr_offset=self._stderr_offset,
        ) as events:
            async for event in events:
                self._pauses.reset()
                if event.HasField("output"):
                    await self._take(event.output)
                elif event.HasField("exited"):
                    self.exited = Exited.of(event.exited.execution)

    async def _take(self, output: arcbox_sandbox_v1.ExecutionOutput) -> None:
        channel = _CHANNELS.get(output.channel, "stdout")
        await self._send.send(ExecutionOutput(channel, output.offset, output.data))
        if channel == "stderr":
            self._stderr_offset = output.offset + len(output.data)
        else:
            self._stdout_offset = output.offset + len(output.data)


@define(eq=False)
class _Pauses:
    """Longer and longer ones between tries, until there was no success for `_patience` seconds."""

    _patience: float
    _next: float = field(init=False, default=_FIRST_PAUSE)
    _deadline: float = field(init=False, default=math.inf)

    def reset(self) -> None:
        """There was success."""
        self._next, self._deadline = _FIRST_PAUSE, math.inf

    async def sleep_after(self, failure: AgentError) -> None:
        """Sleep before the next try. Raises `failure` if there should be none."""
        if self._deadline == math.inf:
            self._deadline = trio.current_time() + self._patience
        if trio.current_time() + self._next > self._deadline:
            raise failure
        await trio.sleep(self._next)
        self._next = min(2 * self._next, _LONGEST_PAUSE)
