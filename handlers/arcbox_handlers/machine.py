"""WatchStats, WatchMemoryPressure, MachineExec, KillAgent: what later hosts ask of the machine itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, frozen

from arcbox_guest.machine_exec import CommandFailedError, MachineCommand
from arcbox_guest.memory_pressure import Reason, Thresholds
from arcbox_handlers import _sandbox_specs
from arcbox_handlers._command import Acknowledgement, StreamCommand, UnaryCommand
from arcbox_handlers._process_relay import relay
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_guest.machine_exec import MachineProcess
    from arcbox_guest.memory_pressure import PressureEvent
    from arcbox_guest.statistics import MachineSample
    from arcbox_handlers._command import Context, ReplyStream

_TIMEOUT: Final = 300_000
_INTERVAL: Final = 1000
_SHORTEST_INTERVAL: Final = 200
_KEEPALIVE: Final = 10_000
"""Milliseconds, where a request says 0; the interval is never shorter than that."""

_Event = arcbox_v1.MemoryPressureEvent
_REASONS: Final = {
    Reason.KEEPALIVE: _Event.KEEPALIVE,
    Reason.LOW_AVAILABLE: _Event.LOW_AVAILABLE,
    Reason.REFAULT_SPIKE: _Event.REFAULT_SPIKE,
    Reason.WINDOW_ELAPSED: _Event.WINDOW_ELAPSED,
    Reason.SETTLED: _Event.SETTLED,
}


@frozen
class WatchStats(StreamCommand[arcbox_v1.WatchStatsRequest]):
    """Samples of what the machine and its containers use, at an interval, the first at once."""

    handles = MessageType.WatchStatsRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        interval = max(self.request.interval_ms or _INTERVAL, _SHORTEST_INTERVAL) / 1000
        due = trio.current_time()
        end = due + (self.request.timeout_ms or _TIMEOUT) / 1000
        while due < end:
            await trio.sleep_until(due)
            await stream.send(_stats(await context.guest.statistics.sample()))
            due = max(due + interval, trio.current_time())
        await trio.sleep_until(end)


def _stats(sample: MachineSample) -> arcbox_v1.MachineStats:
    fields = asdict(sample, recurse=False)
    containers = [arcbox_v1.ContainerStats(name=name, **asdict(usage)) for name, usage in fields.pop("containers")]
    return arcbox_v1.MachineStats(**fields, containers=containers)


@frozen
class WatchMemoryPressure(StreamCommand[arcbox_v1.WatchMemoryPressureRequest]):
    """Whether memory is short, from now until the time is up."""

    handles = MessageType.WatchMemoryPressureRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        request = self.request
        thresholds = Thresholds(
            min_available_bytes=request.min_available_bytes,
            max_refault_rate=request.max_refault_rate,
            psi_full_stall_us=request.psi_full_stall_us,
        )
        timeout, keepalive = (request.timeout_ms or _TIMEOUT) / 1000, (request.keepalive_ms or _KEEPALIVE) / 1000

        async def tell(event: PressureEvent) -> None:
            await stream.send(
                _Event(
                    reason=_REASONS[event.reason],
                    available_bytes=event.available_bytes,
                    refault_rate=event.refault_rate,
                )
            )

        await context.guest.memory_pressure.watch(thresholds, timeout, keepalive, tell)


@frozen
class MachineExec(StreamCommand[arcbox_v1.MachineExecRequest]):
    """A process in the agent's own root. When the host goes, its whole session is killed."""

    handles = MessageType.MachineExecRequest
    accepts = frozenset({MessageType.MachineExecInput, MessageType.MachineExecResize})

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        request = self.request
        command = MachineCommand(
            argv=tuple(request.cmd),
            working_dir=request.working_dir,
            user=request.user,
            env=dict(request.env),
            terminal=_sandbox_specs.terminal_size(request.tty_size) if request.tty else None,
            login=request.login,
        )
        try:
            async with context.guest.machine_exec.process(command) as process:
                if not request.attach_stdin and not request.tty:
                    await process.close_stdin()
                exit_code = await relay(process, stream)
                last = _exit(process, exit_code)
        except CommandFailedError as error:
            await stream.send(arcbox_v1.MachineExecOutput(stream="stderr", data=f"{error}\n".encode()))
            last = arcbox_v1.MachineExecOutput(stream="exit", exit_code=error.exit_code, done=True)
        await stream.send(last)


def _exit(process: MachineProcess, exit_code: int) -> arcbox_v1.MachineExecOutput:
    number = process.killed_by
    if number is None:
        return arcbox_v1.MachineExecOutput(stream="exit", exit_code=exit_code, done=True)
    try:
        name = signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # a real-time signal
        name = str(number)
    return arcbox_v1.MachineExecOutput(stream="exit", exit_code=-1, exit_signal=name, done=True)


@frozen
class KillAgent(UnaryCommand[None]):
    """Ends the agent's process, for tests of hosts."""

    handles = MessageType.KillAgentRequest

    async def __call__(self, context: Context) -> Acknowledgement:
        switch = context.guest.kill_switch
        switch.check()
        return Acknowledgement(None, switch.press)
