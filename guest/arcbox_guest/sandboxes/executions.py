"""What runs detached in one sandbox: its initial command, and executions, which have an id and can be found again."""

from __future__ import annotations

import logging
import math
import re
import time
import uuid
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.errors import (
    ConflictError,
    GuestError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
)
from arcbox_guest.sandboxes.detached import Channel, DetachedSpec
from arcbox_guest.sandboxes.model import Reason
from arcbox_guest.sandboxes.workload import KILLED, NOT_STARTED, End

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from arcbox_guest.sandboxes.detached import DetachedProcess, Exit
    from arcbox_guest.sandboxes.driver import Driver
    from arcbox_guest.sandboxes.model import ExecSpec
    from arcbox_guest.sandboxes.output_log import OutputLog
    from arcbox_guest.sandboxes.workload import Workload

log = logging.getLogger(__name__)

MOST_ENDED: Final = 256
"""Executions of a sandbox that have ended and are kept; the oldest go first."""

_OVERTAKING: Final = 0.5
"""Seconds for which a write to stdin waits for the one before it, while none is under way."""

_INITIAL: Final = ".cmd"
"""The name of the initial command's process, which no id can be."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@define(eq=False)
class Execution:
    """A process with an id."""

    sandbox_id: str
    process: DetachedProcess
    _writing: int = field(init=False, default=0)
    """Writes to its stdin that are under way."""

    _written: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)

    @property
    def id(self) -> str:
        return self.process.name

    @property
    def started_at(self) -> float:
        """Unix seconds."""
        return float(self.process.facts["started_at"])

    @property
    def time_left(self) -> float:
        """Seconds until it is killed; infinite for never."""
        timeout = float(self.process.facts["timeout"])
        return max(0.0, float(self.process.facts["started"]) + timeout - _since_boot()) if timeout else math.inf

    async def write_stdin(self, offset: int, data: bytes, *, last: bool = False) -> None:
        """`DetachedProcess.write_stdin`, for writes that were sent one after the other: one may overtake another.

        Raises:
            OutOfRangeError: something is missing before it, and does not come.
        """
        while self.process.stdin_written < offset and not self.process.stdin_closed:
            with trio.move_on_after(math.inf if self._writing else _OVERTAKING) as patience:
                await self._written.park()
            if patience.cancelled_caught:
                break
        self._writing += 1
        try:
            await self.process.write_stdin(offset, data, last=last)
        finally:
            self._writing -= 1
            self._written.unpark_all()


@define(eq=False, kw_only=True)
class Executions:
    """The executions of one sandbox, those of former agents too."""

    _sandbox_id: str
    _driver: Driver
    _output: Callable[[str], OutputLog]
    """The log of a sandbox's initial command."""

    _admit: Callable[[], Workload]
    """Counts one more process as running; raises ConflictError."""

    _until_quiet: Callable[[], Awaitable[None]]
    """Waits while nothing may be started."""

    _explain: Callable[[], End | None]
    """Called when a process has ended by SIGKILL: why, if that can be found out."""

    _start_soon: Callable[..., object]
    """Runs a function in a task that ends with the sandbox, or the agent."""

    _now: Callable[[], float]
    _executions: dict[str, Execution] = field(init=False, factory=dict)
    """By id, the oldest first."""

    _starting: trio.Lock = field(init=False, factory=trio.Lock)

    async def start(self, execution_id: str, command: ExecSpec, *, stdin: bool) -> Execution:
        """Start an execution, or return the one that has the id. An empty id asks for a new one.

        Raises:
            InvalidArgumentError: no such id, user, or working directory.
            PreconditionError: the sandbox is not ready, or not any more.
            PausedError: it is paused.
            GuestError: whatever the driver says.
        """
        if execution_id and not _ID.fullmatch(execution_id):
            raise InvalidArgumentError(
                f"{execution_id[:80]!r} is no execution id: "
                "1 to 64 letters, digits, '_', '.' and '-', first a letter or digit"
            )
        async with self._starting:
            if execution_id in self._executions:
                return self._executions[execution_id]
            await self._until_quiet()
            try:
                workload = self._admit()
            except ConflictError as error:
                raise PreconditionError(str(error)) from error
            facts = {"started_at": self._now(), "started": _since_boot(), "timeout": command.timeout}
            spec = DetachedSpec(name=execution_id or str(uuid.uuid4()), command=command, stdin=stdin, facts=facts)
            try:
                process = await self._driver.start_detached(self._sandbox_id, spec)
            except BaseException as error:
                workload.end(End(NOT_STARTED, error=str(error)))
                raise
            execution = self._executions[spec.name] = Execution(self._sandbox_id, process)
            self._start_soon(self._attend, process, workload, execution.time_left)
            await self._forget_oldest()
        return execution

    def get(self, execution_id: str) -> Execution:
        """The execution with an id.

        Raises:
            NotFoundError: there is none.
        """
        execution = self._executions.get(execution_id)
        if execution is None:
            raise NotFoundError(f"there is no execution {execution_id[:80]!r} in sandbox {self._sandbox_id}")
        return execution

    def list(self) -> Sequence[Execution]:
        """All of them, the oldest first."""
        return list(self._executions.values())

    async def run_initial_command(self, command: ExecSpec, workload: Workload) -> None:
        """Run the command that the sandbox was created with to its end; its output goes to the sandbox's log."""
        try:
            spec = DetachedSpec(name=_INITIAL, command=command, merged=True)
            process = await self._driver.start_detached(self._sandbox_id, spec)
        except GuestError as error:
            workload.end(End(NOT_STARTED, error=str(error)))
            await self._output(self._sandbox_id).write(f"{error}\n".encode())
        except Exception:
            log.exception("initial command lost", extra={"sandbox": self._sandbox_id})
            workload.end(End(NOT_STARTED))
        else:
            self._attend_initial_command(process, workload)

    async def resume(self) -> bool:
        """Go on with what a former agent has started in the sandbox; whether the initial command was among it.

        Raises:
            GuestError: whatever the driver says.
        """
        found = await self._driver.detached(self._sandbox_id)
        for process in sorted(found, key=lambda process: float(process.facts.get("started_at", 0.0))):
            workload = self._admit() if process.exit is None else None
            if process.name == _INITIAL:
                self._attend_initial_command(process, workload)
            else:
                execution = self._executions[process.name] = Execution(self._sandbox_id, process)
                self._start_soon(self._attend, process, workload, execution.time_left)
        return any(process.name == _INITIAL for process in found)

    def _attend_initial_command(self, process: DetachedProcess, workload: Workload | None) -> None:
        self._start_soon(self._attend, process, workload, math.inf)
        self._start_soon(self._copy, process, self._output(self._sandbox_id))

    async def _attend(self, process: DetachedProcess, workload: Workload | None, time_left: float) -> None:
        """See a process to its end; kill it when its time is up. It goes on when the agent ends before."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.run)
                with trio.move_on_after(time_left):
                    await process.wait()
                timed_out = process.exit is None
                if timed_out:
                    await process.kill()
                ended = await process.wait()
                if workload is not None:
                    workload.end(self._end(ended, timed_out=timed_out))
        except* Exception:  # nobody else would see it
            log.exception("execution can't be watched", extra={"sandbox": self._sandbox_id, "execution": process.name})
            if workload is not None:
                workload.end(End(KILLED))

    def _end(self, ended: Exit, *, timed_out: bool) -> End:
        if ended.code != KILLED:
            return End(ended.code, error=ended.error)
        if timed_out:
            return End(ended.code, Reason.TIMEOUT, f"{Reason.TIMEOUT}: its time was up")
        return self._explain() or End(ended.code)

    async def _copy(self, process: DetachedProcess, output: OutputLog) -> None:
        """Have the log from the first byte on that is kept: a former agent's may lack what it had no time for."""
        output.begin_anew()
        offset = 0
        while (piece := await process.read(Channel.STDOUT, offset)).data:
            await output.write(piece.data)
            offset = piece.offset + len(piece.data)

    async def _forget_oldest(self) -> None:
        ended = [execution for execution in self._executions.values() if execution.process.exit is not None]
        for execution in ended[: max(0, len(ended) - MOST_ENDED)]:
            del self._executions[execution.id]
            await execution.process.forget()


def _since_boot() -> float:
    """Seconds; goes on while the machine sleeps, and knows nothing of steps of the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
