"""Executions: processes in sandboxes that can be found again, by whoever and whenever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen
from google.protobuf.timestamp_pb2 import Timestamp

from arcbox_guest.errors import InvalidArgumentError, OutOfRangeError
from arcbox_guest.sandboxes.detached import Channel
from arcbox_guest.sandboxes.model import SIGNALLED
from arcbox_handlers import _sandbox_specs
from arcbox_handlers._command import StreamCommand, UnaryCommand
from arcbox_handlers._wire import varint
from arcbox_protocol import MessageType, arcbox_sandbox_v1

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.executions import Execution
    from arcbox_handlers._command import Context, ReplyStream

_KEEP_ALIVE: Final = 10.0
"""Seconds between two frames that say nothing but that the stream is alive."""

_LARGEST_SIGNAL: Final = 64
_LARGEST_PORT: Final = 0xFFFF

_RUNNING: Final = arcbox_sandbox_v1.EXECUTION_STATE_RUNNING
_EXITED: Final = arcbox_sandbox_v1.EXECUTION_STATE_EXITED
_CHANNELS: Final = {
    Channel.STDOUT: arcbox_sandbox_v1.STDIO_CHANNEL_STDOUT,
    Channel.STDERR: arcbox_sandbox_v1.STDIO_CHANNEL_STDERR,
}


@frozen
class StartExecution(UnaryCommand[arcbox_sandbox_v1.StartExecutionRequest]):
    """Starts an execution, or finds the one that a former try has started."""

    handles = MessageType.StartExecutionRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.Execution:
        request = self.request
        command = _sandbox_specs.command(request, _sandbox_specs.terminal_size(request.tty_size))
        executions = await context.guest.sandboxes.executions(request.sandbox_id)
        return message(await executions.start(request.execution_id, command, stdin=request.stdin))


@frozen
class AttachExecution(StreamCommand[arcbox_sandbox_v1.AttachExecutionRequest]):
    """The output of an execution from an offset on, and its end. Any number may attach, each at its own pace."""

    handles = MessageType.AttachExecutionRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        request = self.request
        execution = await _find(context, request)
        offsets = {Channel.STDOUT: request.stdout_offset, Channel.STDERR: request.stderr_offset}
        for channel, offset in offsets.items():
            if offset > (length := execution.process.length(channel)):
                raise OutOfRangeError(f"{channel} has {length} bytes yet: it can't be read from {offset} on")
        started = arcbox_sandbox_v1.ExecutionStarted(execution=message(execution))
        await stream.send(arcbox_sandbox_v1.ExecutionEvent(started=started))
        gone = False
        try:
            async with trio.open_nursery() as beside:
                beside.start_soon(_keep_alive, stream)
                async with trio.open_nursery() as pumps:
                    for channel, offset in offsets.items():
                        pumps.start_soon(_send_output, execution, channel, offset, stream)
                await execution.process.wait()
                beside.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            gone = True
        if gone:
            raise trio.BrokenResourceError("the peer is gone")
        exited = arcbox_sandbox_v1.ExecutionExited(execution=message(execution))
        await stream.send(arcbox_sandbox_v1.ExecutionEvent(exited=exited))


@frozen
class WriteStdin(UnaryCommand[arcbox_sandbox_v1.WriteStdinRequest]):
    """Gives an execution input, each byte of it once however often it is sent."""

    handles = MessageType.WriteStdinRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.StdinStatus:
        request = self.request
        execution = await _find(context, request)
        if request.eof and execution.process.terminal:
            raise InvalidArgumentError("eof has no meaning for a terminal: send ^D")
        await execution.write_stdin(request.offset, request.data, last=request.eof)
        return _stdin(execution)


@frozen
class GetStdinStatus(UnaryCommand[arcbox_sandbox_v1.GetStdinStatusRequest]):
    """How much input an execution has got."""

    handles = MessageType.GetStdinStatusRequest

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.StdinStatus:
        return _stdin(await _find(context, self.request))


@frozen
class SignalExecution(UnaryCommand[arcbox_sandbox_v1.SignalExecutionRequest]):
    """Sends an execution's process a signal. One that has ended gets none."""

    handles = MessageType.SignalExecutionRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        if not 1 <= self.request.signal <= _LARGEST_SIGNAL:
            raise InvalidArgumentError(f"{self.request.signal} is no signal")
        await (await _find(context, self.request)).process.signal(int(self.request.signal))


@frozen
class ResizeExecutionTty(UnaryCommand[arcbox_sandbox_v1.ResizeExecutionTtyRequest]):
    """Gives an execution's terminal another size."""

    handles = MessageType.ResizeExecutionTtyRequest

    async def __call__(self, context: Context) -> None:
        size = _sandbox_specs.terminal_size(self.request.size)
        (await _find(context, self.request)).process.resize(size)


@frozen
class WaitExecution(UnaryCommand[arcbox_sandbox_v1.WaitExecutionRequest]):
    """Waits for the end of an execution, or until the time is up: the state says which."""

    handles = MessageType.WaitExecutionRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.Execution:
        execution = await _find(context, self.request)
        with trio.move_on_after(self.request.timeout_seconds):
            await execution.process.wait()
        return message(execution)


@frozen
class ListExecutions(UnaryCommand[arcbox_sandbox_v1.ListExecutionsRequest]):
    """The executions of a sandbox, the oldest first."""

    handles = MessageType.ListExecutionsRequest

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.ListExecutionsResponse:
        executions = await context.guest.sandboxes.executions(self.request.sandbox_id)
        return arcbox_sandbox_v1.ListExecutionsResponse(executions=map(message, executions.list()))


@frozen
class WaitForPort(UnaryCommand[arcbox_sandbox_v1.WaitForPortRequest]):
    """Waits until something in a sandbox listens on a TCP port."""

    handles = MessageType.WaitForPortRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        request = self.request
        if not 1 <= request.port <= _LARGEST_PORT:
            raise InvalidArgumentError(f"{request.port} is no port")
        await context.guest.sandboxes.wait_for_port(request.sandbox_id, request.port, request.timeout_seconds)


COMMANDS = (
    StartExecution,
    AttachExecution,
    WriteStdin,
    GetStdinStatus,
    SignalExecution,
    ResizeExecutionTty,
    WaitExecution,
    ListExecutions,
    WaitForPort,
)


def message(execution: Execution) -> arcbox_sandbox_v1.Execution:
    """All that is known of an execution."""
    process = execution.process
    ended = process.exit
    return arcbox_sandbox_v1.Execution(
        id=execution.id,
        sandbox_id=execution.sandbox_id,
        state=_RUNNING if ended is None else _EXITED,
        tty=process.terminal,
        started_at=_timestamp(execution.started_at),
        exited_at=None if ended is None else _timestamp(ended.at),
        exit_status=None if ended is None else _exit_status(ended.code),
        error="" if ended is None else ended.error,
        stdout_len=process.length(Channel.STDOUT),
        stderr_len=process.length(Channel.STDERR),
        stdin=_stdin(execution),
    )


async def _find(
    context: Context,
    request: arcbox_sandbox_v1.AttachExecutionRequest
    | arcbox_sandbox_v1.WriteStdinRequest
    | arcbox_sandbox_v1.GetStdinStatusRequest
    | arcbox_sandbox_v1.SignalExecutionRequest
    | arcbox_sandbox_v1.ResizeExecutionTtyRequest
    | arcbox_sandbox_v1.WaitExecutionRequest,
) -> Execution:
    return (await context.guest.sandboxes.executions(request.sandbox_id)).get(request.execution_id)


async def _send_output(execution: Execution, channel: Channel, offset: int, stream: ReplyStream) -> None:
    # ExecutionEvent: output = 2 {channel enum = 1, offset uint64 = 2, data bytes = 3}; the data go as they are.
    name = arcbox_sandbox_v1.STDIO_CHANNEL_PTY if execution.process.terminal else _CHANNELS[channel]
    while (piece := await execution.process.read(channel, offset)).data:
        head = b"\x08" + varint(name) + b"\x10" + varint(piece.offset) + b"\x1a" + varint(len(piece.data))
        await stream.send_payload(b"\x12" + varint(len(head) + len(piece.data)) + head, piece.data)
        offset = piece.offset + len(piece.data)


async def _keep_alive(stream: ReplyStream) -> None:
    while True:
        await trio.sleep(_KEEP_ALIVE)
        await stream.send(arcbox_sandbox_v1.ExecutionEvent(keep_alive=arcbox_sandbox_v1.KeepAlive()))


def _exit_status(code: int) -> arcbox_sandbox_v1.ExitStatus:
    if SIGNALLED < code <= SIGNALLED + _LARGEST_SIGNAL:
        return arcbox_sandbox_v1.ExitStatus(signal=code - SIGNALLED)
    return arcbox_sandbox_v1.ExitStatus(code=code)


def _stdin(execution: Execution) -> arcbox_sandbox_v1.StdinStatus:
    process = execution.process
    return arcbox_sandbox_v1.StdinStatus(bytes_written=process.stdin_written, closed=process.stdin_closed)


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
