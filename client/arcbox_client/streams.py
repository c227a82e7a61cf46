"""Streams as objects: what a process writes, what happens to sandboxes, what the agent says unasked."""

from __future__ import annotations

import math
import signal
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Literal, cast

import trio
from attrs import define, field, frozen
from google.protobuf.message import DecodeError

from arcbox_client._background import beside
from arcbox_client._requests import ReplyT
from arcbox_client.errors import AgentError, NotificationsMissedError, ProtocolViolationError
from arcbox_protocol import MessageType, arcbox_v1, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_client._multiplexer import Multiplexer
    from arcbox_client._requests import Replies
    from arcbox_client.errors import ConnectionLostError
    from arcbox_protocol import Buffer, Frame

    _Output = sandbox_v1.RunOutput | sandbox_v1.ExecOutput | arcbox_v1.MachineExecOutput
    _Outputs = Replies[sandbox_v1.RunOutput] | Replies[sandbox_v1.ExecOutput] | Replies[arcbox_v1.MachineExecOutput]

_STDIN_CHUNK = 64 * 1024
"""Bytes of stdin per frame: small enough that other requests on the connection get their turn."""


Notification = arcbox_v1.PortBindingsChanged | arcbox_v1.PortBindingsRemoved

_MESSAGES: dict[MessageType, type[Notification]] = {
    MessageType.PortBindingsChanged: arcbox_v1.PortBindingsChanged,
    MessageType.PortBindingsRemoved: arcbox_v1.PortBindingsRemoved,
}

_BUFFER = 1024
"""Notifications kept for whoever takes them later; then the oldest go."""


KillReason = Literal["oom", "timeout", "removed", "expired"]
"""Why the agent killed a process: memory limit, time limit, its sandbox was removed, or the sandbox's time was up."""

KILLED: Final = 128 + signal.SIGKILL
"""The exit code of what was killed."""


@frozen
class OutputChunk:
    """Some bytes that a process wrote, cut anywhere."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@frozen
class Completed:
    """What became of a process."""

    exit_code: int
    """128 + n for one that signal n killed."""

    stdout: bytes
    stderr: bytes
    reason: KillReason | None = None
    """Why it was killed, where the agent knows."""


@define(eq=False)
class RunSession:
    """A process in a sandbox and its output: `async for chunk in session`, an `OutputChunk` each.

    Take the output as it comes. About 1 MiB waits here for a slow consumer; then the connection is read no further,
    and the process in the guest waits too.
    """

    _replies: _Outputs
    exit_code: int | None = field(init=False, default=None)
    """None until the output was read to its end. 128 + n for a process that signal n killed."""

    def __aiter__(self) -> RunSession:
        return self

    async def __anext__(self) -> OutputChunk:
        """The next output.

        Raises:
            RequestFailedError: the process could not be started (no such sandbox, wrong state), or the agent gave up.
            ConnectionLostError: the connection ended before the process did.
        """
        while self.exit_code is None:
            reply = await self._replies.next()
            if reply.done:
                self.exit_code = _exit_code(reply)
            if reply.data:
                return OutputChunk(cast('Literal["stdout", "stderr"]', reply.stream), reply.data)
        raise StopAsyncIteration

    async def wait(self) -> int:
        """Throw the rest of the output away, and return the exit code. Raises as iterating does."""
        async for _ in self:
            pass
        return cast("int", self.exit_code)

    async def collect(self) -> Completed:
        """Read the rest of the output, all of it into memory. Raises as iterating does."""
        parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        async for chunk in self:
            parts.setdefault(chunk.stream, []).append(chunk.data)
        return Completed(cast("int", self.exit_code), b"".join(parts["stdout"]), b"".join(parts["stderr"]))


def _exit_code(last: _Output) -> int:
    """The exit code as a shell has it; MachineExec alone reports a signal by its name, and -1 beside it."""
    if isinstance(last, arcbox_v1.MachineExecOutput) and f"SIG{last.exit_signal}" in signal.Signals.__members__:
        return 128 + signal.Signals[f"SIG{last.exit_signal}"]
    return last.exit_code


@define(eq=False)
class ExecSession(RunSession):
    """A process, in a sandbox or beside them, that has a stdin and, maybe, a terminal."""

    _multiplexer: Multiplexer
    _trace_id: str
    _input: MessageType = MessageType.SandboxExecInput
    _resize: MessageType = MessageType.SandboxExecResize
    _stdin_closed: bool = field(init=False, default=False)

    async def send_stdin(self, data: Buffer) -> None:
        """Write to the process's stdin; waits while the agent does not read.

        A process that echoes its stdin needs somebody who reads its output meanwhile: see `communicate`.

        Raises:
            ConnectionLostError: there is no connection any more.
            trio.ClosedResourceError: after `close_stdin`.
        """
        if self._stdin_closed:
            raise trio.ClosedResourceError("stdin was closed already")
        view = memoryview(data)
        for start in range(0, len(view), _STDIN_CHUNK):
            chunk = bytes(view[start : start + _STDIN_CHUNK])
            await self._multiplexer.send(self._input, self._trace_id, chunk)
            await trio.lowlevel.checkpoint()

    async def close_stdin(self) -> None:
        """Let the process see the end of its stdin. Again has no effect."""
        if not self._stdin_closed:
            self._stdin_closed = True
            await self._multiplexer.send(self._input, self._trace_id, b"")

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the process's terminal its new size."""
        size = sandbox_v1.TerminalSize(width=columns, height=rows)
        await self._multiplexer.send(self._resize, self._trace_id, size.SerializeToString())

    async def communicate(self, stdin: Buffer = b"") -> Completed:
        """Send `stdin` and its end, and read all output meanwhile. Raises as iterating does."""

        async def feed() -> None:
            try:
                await self.send_stdin(stdin)
                await self.close_stdin()
            except AgentError:
                pass  # whoever reads the output meets it too

        async with beside(feed):
            return await self.collect()


@define(eq=False)
class MessageStream(Generic[ReplyT]):
    """The messages that answer one request, as they come: `async for message in stream`.

    It ends with the message for which `_is_last` holds, with the frame that the protocol has for that, or at
    `_deadline`, seconds of Trio's clock: the agent ends some streams without a word.
    """

    _replies: Replies[ReplyT]
    _is_last: Callable[[ReplyT], bool] | None = None
    _deadline: float = math.inf
    _ended: bool = field(init=False, default=False)

    def __aiter__(self) -> MessageStream[ReplyT]:
        return self

    async def __anext__(self) -> ReplyT:
        """The next message.

        Raises:
            RequestFailedError: the agent ended it with an error; 503 when this consumer fell behind by more than the
                agent keeps.
            ConnectionLostError: the connection ended.
        """
        if not self._ended:
            try:
                with trio.move_on_at(self._deadline):
                    reply = await self._replies.next()
                    self._ended = self._is_last is not None and self._is_last(reply)
                    return reply
            except trio.EndOfChannel:
                pass
        self._ended = True
        raise StopAsyncIteration


@define(eq=False)
class Notifications:
    """The notifications of one connection, as an async iterator: `async for change in client.notifications`.

    Each goes to one consumer. Up to 1024 wait; when more come, the oldest are dropped, and the consumer is told by
    `NotificationsMissedError`, after which it can go on iterating. The iteration ends with `ConnectionLostError`.
    """

    _waiting: deque[Notification] = field(init=False, factory=deque)
    _missed: int = field(init=False, default=0)
    _arrival: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _error: ConnectionLostError | None = field(init=False, default=None)

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> Notification:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._error is not None:
                raise self._error
            await self._arrival.park()
        if self._missed:
            missed, self._missed = self._missed, 0
            raise NotificationsMissedError(missed)
        return self._waiting.popleft()

    def deliver(self, notification: Notification) -> None:
        """Keep one more. For the multiplexer."""
        if len(self._waiting) == _BUFFER:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(notification)
        self._arrival.unpark()

    def lose(self, error: ConnectionLostError) -> None:
        """Nothing more will come. For the multiplexer."""
        self._error = error
        self._arrival.unpark_all()


def parse_notification(frame: Frame) -> Notification:
    """The notification in a frame whose type is one. Raises `ProtocolViolationError`."""
    message_type = MessageType(frame.type)
    try:
        return _MESSAGES[message_type].FromString(frame.payload)
    except DecodeError as error:
        raise ProtocolViolationError(f"a {message_type.name} that does not parse: {error}") from error
