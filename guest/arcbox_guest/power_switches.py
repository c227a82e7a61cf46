"""The ways to power a machine off, and which of them is this agent's to use."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio
from attrs import field, frozen

from arcbox_guest.errors import GuestError
from arcbox_guest.power import sync_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import CompletedProcess

    from arcbox_guest.power import PowerSwitch

_LEAST_PATIENCE: Final = 5.0
"""Seconds that systemctl, and the last sync, get at least: however little is left of the grace period."""

_POLL: Final = 0.05
"""Seconds between two looks at what still runs."""

_RB_POWER_OFF: Final = 0x4321_FEDC
"""reboot(2); the C library adds the magic numbers."""

_PF_KTHREAD: Final = 0x0020_0000
"""The kernel's flag for its own threads, in the ninth field of /proc/PID/stat."""


class Machine(Protocol):
    """What PID 1 does to its machine."""

    def kill_all(self, signal_number: int) -> None:
        """Send a signal to all processes but the caller."""

    def has_processes(self) -> bool:
        """Whether any process but the caller runs."""

    def sync(self) -> None:
        """Write all file systems to their disks; blocks."""

    def power_off(self) -> None:
        """Cut the power, at once."""


def choose_power_switch(
    setting: Literal["auto", "disabled"],
    *,
    pid: int,
    parent_pid: int,
    environ: Mapping[str, str],
    systemd_running: bool,
) -> Literal["pid1", "systemd"] | None:
    """Which way to power off belongs to an agent; None for one that must not power anything off.

    systemd (since version 248) sets SYSTEMD_EXEC_PID to the process id of the service that it starts: a shell or
    a terminal inside of a service inherits the variable, but not the id. A service of a user's own manager has
    another parent than PID 1: it belongs to somebody's desktop, not to the machine.
    """
    if setting == "disabled":
        return None
    if pid == 1:
        return "pid1"
    if systemd_running and parent_pid == 1 and environ.get("SYSTEMD_EXEC_PID") == str(pid):
        return "systemd"
    return None


def power_switch(setting: Literal["auto", "disabled"]) -> PowerSwitch | None:
    """The switch of this very process, by `choose_power_switch`."""
    choice = choose_power_switch(
        setting,
        pid=os.getpid(),
        parent_pid=os.getppid(),
        environ=os.environ,
        systemd_running=Path("/run/systemd/system").is_dir(),  # sd_booted(3)
    )
    if choice == "pid1":
        return Pid1PowerSwitch(KernelMachine())
    return SystemdPowerSwitch() if choice == "systemd" else None


@frozen
class SystemdPowerSwitch:
    """Asks systemd, which ends everything in order, the agent included."""

    name: str = "systemd"
    _command: Sequence[str] = field(default=("systemctl", "poweroff"), kw_only=True)

    async def off(self, deadline: float) -> None:
        """Start systemd's poweroff.target; returns before it is reached.

        Raises:
            GuestError: systemd refuses, or does not answer.
        """
        try:
            with trio.fail_at(max(deadline, trio.current_time() + _LEAST_PATIENCE)):
                done: CompletedProcess[bytes] = await trio.run_process(
                    self._command, check=False, capture_stdout=True, capture_stderr=True, start_new_session=True
                )
        except trio.TooSlowError:
            raise GuestError("systemctl poweroff does not return") from None
        except OSError as error:
            raise GuestError(f"systemctl can't be run: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise GuestError(f"systemctl poweroff ended with {done.returncode}: {said}")


@frozen
class Pid1PowerSwitch:
    """Ends all processes and powers off, as only the init process may."""

    _machine: Machine
    name: str = "reboot(2)"

    async def off(self, deadline: float) -> None:
        """SIGTERM to all; when they are gone, or the time is up, SIGKILL, sync, and power off."""
        machine = self._machine
        machine.kill_all(signal.SIGTERM)
        with trio.move_on_at(deadline):
            await self._all_gone()
        machine.kill_all(signal.SIGKILL)
        await sync_until(trio.current_time() + _LEAST_PATIENCE, machine.sync)
        machine.power_off()

    async def _all_gone(self) -> None:
        """Nothing tells that the last process is gone: it has to be asked for."""
        while True:
            await trio.sleep(_POLL)
            if not self._machine.has_processes():
                return


class KernelMachine:
    """The machine, or the container, that this process is the init of; any other process is refused."""

    def kill_all(self, signal_number: int) -> None:
        _require_pid1()
        with suppress(ProcessLookupError):  # there is nobody else
            os.kill(-1, signal_number)

    def has_processes(self) -> bool:
        _require_pid1()
        return any(_runs(entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and entry.name != "1")

    def sync(self) -> None:
        _require_pid1()
        os.sync()

    def power_off(self) -> None:
        _require_pid1()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.reboot(ctypes.c_int(_RB_POWER_OFF)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"reboot(2): {os.strerror(code)}")


def _require_pid1() -> None:
    if os.getpid() != 1:
        raise GuestError("only PID 1 may do this to a machine")


def _runs(process: Path) -> bool:
    try:
        return is_running_program((process / "stat").read_bytes())
    except OSError:  # it ended
        return False


def is_running_program(stat: bytes) -> bool:
    """Whether /proc/PID/stat shows a program that runs: neither a zombie nor a thread of the kernel's.

    The name of a program, in parentheses, may hold parentheses and spaces itself: what follows the last one
    counts.
    """
    state, *numbers = stat[stat.rindex(b")") + 2 :].split()
    flags = int(numbers[5])
    return state not in (b"Z", b"X") and not flags & _PF_KTHREAD
