"""Keeps one daemon of the guest running: containerd, dockerd, k3s.

A daemon is started when it is first asked for, and from the moment it was ready it is started again whenever it ends,
after a delay that grows. It outlives the agent: the next one adopts it.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field, frozen

from arcbox_guest.backoff import Backoff
from arcbox_guest.daemon_process import DaemonProcess, bound_log
from arcbox_guest.errors import UnavailableError
from arcbox_guest.ready_notice import ReadyNotice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_POLL: Final = 0.1
"""Seconds between two probes of a daemon that is starting, if it does not say when it is ready."""

_BOUND_LOG_EVERY: Final = 5.0
"""Seconds between two looks at the size of a log."""

_HEALTHY_AFTER: Final = 60.0
"""Seconds that a daemon must have been ready for its next end to count as the first."""

_KILLED_WITHIN: Final = 10.0
"""Seconds in which a process that got SIGKILL must be gone. One that waits for a device is given up."""


class DaemonStatus(enum.Enum):
    """What a daemon is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@frozen(kw_only=True)
class DaemonSpec:
    """How to run a daemon."""

    name: str
    argv: tuple[str, ...]
    """The program, an absolute path, and its arguments."""

    probe: Callable[[], Awaitable[bool]]
    """Whether it answers. Has a deadline of its own, of about a second. Not asked any more once it says READY=1."""

    start_timeout: float
    """Seconds from its start in which it must answer; it is ended otherwise."""

    state_dir: Path
    """Holds its pid file and its log."""

    stop_timeout: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""

    environment: Mapping[str, str] | None = None
    """None for the agent's own."""

    cgroup: Path | None = None
    """A directory of cgroup2, made if it is not there, that the daemon is started in; None for the agent's own."""

    log_limit: int = 1024 * 1024
    """Bytes of the log above which the older half is dropped."""

    @property
    def pid_file(self) -> Path:
        return self.state_dir / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.state_dir / f"{self.name}.log"


@define(eq=False)
class Daemon:
    """One daemon. `run` does the work; any number of tasks may call `start` and `stop` beside it."""

    spec: DaemonSpec
    status: DaemonStatus = field(init=False, default=DaemonStatus.STOPPED)
    detail: str = field(init=False, default="")
    """Why it is not ready, for people."""

    wanted: bool = field(init=False, default=False)
    """Whether it shall run: it is started again when it ends."""

    restarts: int = field(init=False, default=0)
    """How often it ended by itself and was started again."""

    _process: DaemonProcess | None = field(init=False, default=None)
    _fault: str = field(init=False, default="")
    """What the process was killed for."""

    _adopted: trio.Event = field(init=False, factory=trio.Event)
    """Set once it is known whether one runs already."""

    _changed: trio.Event = field(init=False, factory=trio.Event)
    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(2))

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def known(self) -> bool:
        """Whether it was found out already if one runs, which a former agent has started."""
        return self._adopted.is_set()

    async def until_known(self) -> None:
        """Wait until it is known whether one runs already, which a former agent has started."""
        await self._adopted.wait()

    @property
    def has_just_ended(self) -> bool:
        """Whether the process is gone, and `status` does not say so yet."""
        return self._process is not None and self._process.ended()

    async def changed(self) -> None:
        """Wait for the next change of `status` or `detail`."""
        await self._changed.wait()

    async def start(self, spec: DaemonSpec | None = None) -> None:
        """Have it running, and wait until it is ready. Who stops waiting does not stop it.

        Args:
            spec: from now on, for the next process that has to be started.

        Raises:
            UnavailableError: it can't be started, or did not become ready; the text says why.
        """
        await self._adopted.wait()
        if spec is not None:
            self.spec = spec
        await self._until_stopped()
        if not self.wanted:
            self.wanted = True
            self._set(DaemonStatus.STARTING)
        while self.wanted and self.status is not DaemonStatus.READY:
            await self.changed()
        if self.status is not DaemonStatus.READY:
            raise UnavailableError(f"{self.spec.name} {self.detail or 'was stopped'}")

    async def stop(self) -> None:
        """End it: SIGTERM, SIGKILL after `stop_timeout`; wait until it is gone.

        Raises:
            UnavailableError: it can't be killed.
        """
        await self._adopted.wait()
        if self.wanted:
            self.wanted = False
            self._set(DaemonStatus.STOPPING)
        await self._until_stopped()

    def kill(self, fault: str) -> None:
        """Kill it for something that it does, and have it started again. Nothing if it does not run."""
        if self._process is not None:
            self._fault = fault
            self._process.pidfd.signal(signal.SIGKILL)

    async def _until_stopped(self) -> None:
        while self.status is DaemonStatus.STOPPING:
            if self.detail:
                raise UnavailableError(f"{self.spec.name} {self.detail}")
            await self.changed()

    async def run(self) -> None:
        """Keep it as it is wanted, for ever. When this is cancelled, the daemon goes on."""
        backoff = Backoff(first=0.5, longest=30.0)
        self._process = await self._in_thread(DaemonProcess.find, self.spec.pid_file, self.spec.log)
        if self._process is not None:
            log.info("daemon adopted", extra={"daemon": self.spec.name, "pid": self._process.pid})
            self.wanted = True
            self._set(DaemonStatus.STARTING)
        self._adopted.set()
        try:
            while True:
                while not self.wanted:
                    await self.changed()
                await self._run_once(backoff)
        finally:
            if self._process is not None:
                self._process.pidfd.close()

    async def _run_once(self, backoff: Backoff) -> None:
        """From a start, or an adoption, to the end of the process; and the delay before the next start."""
        was_ready = False
        try:
            async with ReadyNotice.listening() as notice:
                process = await self._running(notice)
                was_ready = await self._becomes_ready(process, notice)
        except OSError as error:
            reason = f"can't be started: {error}"
        else:
            if was_ready:
                self._set(DaemonStatus.READY)
                await self._supervise(process, backoff)
            reason = await self._end(process)
        if not self.wanted:
            log.info("daemon stopped", extra={"daemon": self.spec.name})
            self.restarts = 0
            self._set(DaemonStatus.STOPPED)
        elif was_ready or self.restarts:
            await self._wait_for_restart(reason, backoff.next_delay())
        else:
            log.error("daemon failed", extra={"daemon": self.spec.name, "reason": reason})
            self.wanted = False
            self._set(DaemonStatus.FAILED, reason)

    async def _running(self, notice: ReadyNotice) -> DaemonProcess:
        """The process that was adopted, else a new one. Raises OSError: it can't be started."""
        if self._process is None:
            self._set(DaemonStatus.STARTING)
            environment = os.environ if self.spec.environment is None else self.spec.environment
            self._process = await self._in_thread(
                partial(
                    DaemonProcess.start,
                    self.spec.argv,
                    environment={**environment, "NOTIFY_SOCKET": notice.address},
                    log=self.spec.log,
                    pid_file=self.spec.pid_file,
                    cgroup=self.spec.cgroup,
                )
            )
            log.info("daemon started", extra={"daemon": self.spec.name, "pid": self._process.pid})
        return self._process

    async def _becomes_ready(self, process: DaemonProcess, notice: ReadyNotice) -> bool:
        with trio.move_on_after(self.spec.start_timeout):
            while not await self.spec.probe():
                if not self.wanted or process.ended():
                    return False
                if await self._says_so(process, notice):
                    break
            return not process.ended()  # else it was another one that answered
        return False

    async def _says_so(self, process: DaemonProcess, notice: ReadyNotice) -> bool:
        """Whether the daemon says that it is ready before `_POLL` has passed, or it ends."""
        with trio.move_on_after(_POLL) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ended, process, waiting)
                await notice.wait(process.pid)
                nursery.cancel_scope.cancel()
        return not waiting.cancelled_caught

    async def _supervise(self, process: DaemonProcess, backoff: Backoff) -> None:
        """Until the process has ended, or shall end."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bound_log)
            nursery.start_soon(self._ended, process, nursery.cancel_scope)
            await self._until_unwanted()
            nursery.cancel_scope.cancel()
        if trio.current_time() - began >= _HEALTHY_AFTER:
            backoff.reset()

    async def _until_unwanted(self) -> None:
        while self.wanted:
            await self.changed()

    async def _ended(self, process: DaemonProcess, meanwhile: trio.CancelScope) -> None:
        await process.pidfd.wait()
        meanwhile.cancel()

    async def _bound_log(self) -> None:
        while True:
            await trio.sleep(_BOUND_LOG_EVERY)
            try:
                await self._in_thread(bound_log, self.spec.log, self.spec.log_limit)
            except OSError as error:
                log.warning("log not bounded", extra={"daemon": self.spec.name, "reason": str(error)})
                return

    async def _end(self, process: DaemonProcess) -> str:
        """Have the process gone, and return why it is."""
        reason = ""
        if not process.ended():
            if self.wanted:
                lines = await self._in_thread(process.last_lines)
                reason = f"did not answer within {self.spec.start_timeout:g} s; its log ends with: {lines}"
            await self._kill(process)
        how = await self._in_thread(process.describe_end)  # which reaps it: a zombie would hold dockerd's pid file
        reason = reason or how
        if self._fault:
            reason, self._fault = f"{self._fault}, and {reason}", ""
        process.pidfd.close()
        self._process = None
        return reason

    async def _kill(self, process: DaemonProcess) -> None:
        process.pidfd.signal(signal.SIGTERM)
        with trio.move_on_after(self.spec.stop_timeout):
            await process.pidfd.wait()
            return
        process.pidfd.signal(signal.SIGKILL)
        with trio.move_on_after(_KILLED_WITHIN):
            await process.pidfd.wait()
            return
        log.error("daemon can't be killed", extra={"daemon": self.spec.name, "pid": process.pid})
        self._set(DaemonStatus.STOPPING, "can't be killed: it waits for a device, perhaps")
        await process.pidfd.wait()  # there must never be two

    async def _wait_for_restart(self, reason: str, delay: float) -> None:
        log.warning(
            "daemon ended, will be started again",
            extra={"daemon": self.spec.name, "reason": reason, "restart_in_seconds": delay},
        )
        self.restarts += 1
        self._set(DaemonStatus.FAILED, f"{reason}; it is started again in {delay:g} s")
        with trio.move_on_after(delay):
            await self._until_unwanted()
            self._set(DaemonStatus.STOPPED)

    def _set(self, status: DaemonStatus, detail: str = "") -> None:
        self.status, self.detail = status, detail
        self._changed.set()
        self._changed = trio.Event()

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter, abandon_on_cancel=True)
