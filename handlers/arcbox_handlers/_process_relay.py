"""Between a process in a sandbox and the stream that asked for it: output to the peer, input to the process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.errors import InvalidArgumentError
from arcbox_handlers import _sandbox_specs
from arcbox_handlers._wire import varint
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import Iterable

    from arcbox_guest.sandboxes.driver import OutputStream, Process
    from arcbox_handlers._command import ReplyStream
    from arcbox_protocol import Frame

log = logging.getLogger(__name__)

_RESIZES: Final = (MessageType.SandboxExecResize, MessageType.MachineExecResize)
"""Frames of input with the size of a terminal, the same message in both; others are stdin."""

_LEFT_BEHIND = 1.0
"""Seconds that the output may stay open after the end of its process: a daemon that it left behind can hold it."""

# RunOutput, ExecOutput and MachineExecOutput are the same up to here: stream = 1, data = 2, both length-delimited.
_STDOUT: Final = b"\x0a\x06stdout\x12"
_STDERR: Final = b"\x0a\x06stderr\x12"


async def relay(process: Process, stream: ReplyStream) -> int:
    """Carry a process's output to the peer and the peer's input to the process; returns its exit code.

    All of the output has been sent then.

    Raises:
        trio.BrokenResourceError: the peer is gone.
        GuestError: the process could not be waited for; as `Process.wait` says it.
    """
    pumps = [_Pump(_STDOUT, process.stdout, stream)]
    if process.stderr is not None:
        pumps.append(_Pump(_STDERR, process.stderr, stream))
    exit_code = 0
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as input_:
            input_.start_soon(_feed, process, stream)
            async with trio.open_nursery() as output:
                for pump in pumps:
                    output.start_soon(pump.run)
                exit_code = await process.wait()
                with trio.move_on_after(_LEFT_BEHIND):
                    await _ended(pumps)
                for pump in pumps:
                    pump.finish()
            input_.cancel_scope.cancel()
    except* trio.BrokenResourceError:
        failure = trio.BrokenResourceError("the peer is gone")
    except* Exception as failed:  # noqa: BLE001  raised below
        failure = failure or _first(failed)
    if failure is not None:
        raise failure
    return exit_code


def _first(failed: ExceptionGroup[Exception]) -> Exception:
    """The error that ended the others' tasks: the peer is told of one."""
    error = failed.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


@define(eq=False)
class _Pump:
    """Sends what a process writes to one of its streams, a frame for each piece, as fast as the peer takes it.

    A send must not be cancelled: it would leave half a frame, and so end the connection. Only the wait for more output
    may be, and without a cancel scope for every piece of it.
    """

    _head: bytes
    _output: OutputStream
    _stream: ReplyStream
    ended: trio.Event = field(init=False, factory=trio.Event)
    _receiving: bool = field(init=False, default=False)
    _finishing: bool = field(init=False, default=False)
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)

    async def run(self) -> None:
        try:
            if await self._until_finish():
                await self._what_is_left()
        finally:
            self.ended.set()

    def finish(self) -> None:
        """Wait for no more output; what is there already is still sent."""
        self._finishing = True
        if self._receiving:
            self._scope.cancel()

    async def _until_finish(self) -> bool:
        """Send all output; False at its end, True when `finish` came before."""
        piece: memoryview | None = None
        with self._scope:
            while not self._finishing:
                self._receiving = True
                piece = None
                piece = await self._output.receive()
                self._receiving = False
                if self._finishing:  # the scope may be cancelled: not one more wait in it
                    break
                if not piece:
                    return False
                await self._send(piece)
                piece = None
        if piece:
            await self._send(piece)
        return True

    async def _what_is_left(self) -> None:
        left = self._output.unread()
        while left > 0 and (piece := await self._output.receive()):
            left -= len(piece)
            await self._send(piece)

    async def _send(self, piece: memoryview) -> None:
        await self._stream.send_payload(self._head + varint(len(piece)), piece)


async def _ended(pumps: Iterable[_Pump]) -> None:
    for pump in pumps:
        await pump.ended.wait()


async def _feed(process: Process, stream: ReplyStream) -> None:
    """Give a process what the peer sends to it. Waits while it does not read."""
    takes_more = True
    async for frame in stream.inputs:
        if frame.type in _RESIZES:
            _resize(process, frame)
        elif takes_more:
            takes_more = await _write_stdin(process, frame.payload)


async def _write_stdin(process: Process, data: bytes) -> bool:
    """Write to a process's stdin, or end it when `data` is empty; whether it takes more."""
    if not data:
        await process.close_stdin()
        return False
    try:
        await process.send_stdin(data)
    except trio.BrokenResourceError:  # it closed its stdin: what is sent there is lost, as in a shell
        return False
    return True


def _resize(process: Process, frame: Frame) -> None:
    try:
        size = _sandbox_specs.terminal_size(sandbox_v1.TerminalSize.FromString(frame.payload))
    except InvalidArgumentError as error:
        log.warning("resize dropped", extra={"reason": str(error)})
    except Exception as error:  # noqa: BLE001  protobuf's DecodeError, by its name a module more
        log.warning("resize dropped: it does not parse", extra={"reason": str(error)})
    else:
        process.resize(size)
