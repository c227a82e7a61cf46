"""PID 1 itself: one child that is the agent, any number of orphans, and two signals.

SIGTERM powers the machine off, SIGINT (Ctrl-Alt-Del) restarts it: SIGTERM to all processes, SIGKILL after some seconds,
sync, reboot(2). Every child that ends is reaped; none but the agent and the DHCP client was started here, so nobody is
waiting for it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from arcbox_agent.pid1 import machine, mounts
from arcbox_agent.pid1.console import say
from arcbox_guest.backoff import Backoff
from arcbox_guest.errors import GuestError
from arcbox_guest.kernel_machine import SUPERVISED, KernelMachine

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIGNALS: Final = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}

_HEALTHY_AFTER: Final = 60.0
"""Seconds that the agent must have run for its next failure to count as the first."""

_GRACE: Final = 10.0
"""Seconds that processes get to end after SIGTERM: the agent's own `shutdown_grace` is 5 by default."""

_POLL: Final = 0.05
_AT_MOST: Final = 3600.0
"""Seconds to wait for a signal when nothing is due."""


def run(arguments: Sequence[str]) -> NoReturn:
    """Be PID 1, for as long as the machine is on.

    Args:
        arguments: `serve` and its options; anything else is the kernel's, and ignored.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    supervisor: Supervisor | None = None
    while True:
        try:
            if supervisor is None:
                _prepare()
                own = arguments if arguments[:1] == ["serve"] else ["serve"]
                supervisor = Supervisor([*_this_program(), *own])
                supervisor.trap_keys()
            supervisor.run()
        except Exception:  # noqa: BLE001  the kernel panics if this process ends
            say(f"an error of PID 1:\n{traceback.format_exc()}")
            time.sleep(1)


def _prepare() -> None:
    mounts.mount_all()
    _open_standard_streams()
    machine.set_up()
    mounts.mount_shares()
    if command := machine.dhcp_command():
        _spawn(command)


def _open_standard_streams() -> None:
    """A kernel that found no console starts PID 1 without them; whatever is opened next would take their places."""
    while True:
        try:
            descriptor = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            descriptor = os.open("/dev/null", os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def _this_program() -> list[str]:
    """How this process was started, without its arguments."""
    return sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]


def _spawn(command: Sequence[str]) -> int:
    """Start a child in a session of its own, with nothing of our signals; returns its process id."""
    return os.posix_spawnp(
        command[0],
        list(command),
        {**os.environ, SUPERVISED: "1"},
        setsid=True,
        setsigmask=[],
        setsigdef=_SIGNALS,
    )


class Supervisor:
    """Keeps one command running."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._agent: int | None = None
        self._started = 0.0
        self._due = 0.0
        """When the agent is to be started, by the monotonic clock."""

        self._backoff = Backoff(first=0.5, longest=10.0)
        self._kernel = KernelMachine()

    def trap_keys(self) -> None:
        """Have Ctrl-Alt-Del restart the machine in order."""
        with suppress(OSError):  # a container has no keyboard
            self._kernel.trap_ctrl_alt_delete()

    def run(self) -> NoReturn:
        """Start the agent, and again whenever it ends; until a signal ends it all."""
        while True:
            now = time.monotonic()
            if self._agent is None and now >= self._due:
                self._start(now)
            timeout = _AT_MOST if self._agent is not None else max(0.0, self._due - now)
            received = signal.sigtimedwait(_SIGNALS, timeout)
            self._reap()
            if received is not None and received.si_signo != signal.SIGCHLD:
                self._end(restart=received.si_signo == signal.SIGINT)

    def _start(self, now: float) -> None:
        self._started = now
        try:
            self._agent = _spawn(self._command)
        except OSError as error:
            self._schedule(f"the agent can't be started: {error}")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._agent:
                self._agent = None
                self._schedule(f"the agent {_how(os.waitstatus_to_exitcode(status))}")

    def _schedule(self, why: str) -> None:
        if time.monotonic() - self._started >= _HEALTHY_AFTER:
            self._backoff.reset()
        delay = self._backoff.next_delay()
        self._due = time.monotonic() + delay
        say(f"{why}; it is started again in {delay:g} s")

    def _end(self, *, restart: bool) -> None:
        """End all processes and the machine; where that is not allowed, in a container, this process."""
        say("restarting" if restart else "powering off")
        self._kernel.kill_all(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        while self._kernel.has_processes() and time.monotonic() < deadline:
            self._reap_all()
            time.sleep(_POLL)
        self._kernel.kill_all(signal.SIGKILL)
        self._kernel.sync()
        self._kernel.remount_read_only()
        try:
            self._kernel.power_off(restart=restart)
        except (OSError, GuestError) as error:
            say(f"the machine can't be powered off: {error}")
            os._exit(0)

    def _reap_all(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            pass


def _how(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
