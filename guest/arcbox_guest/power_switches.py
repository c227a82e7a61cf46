"""The ways to power a machine off, and which of them is this agent's to use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio
from attrs import field, frozen

from arcbox_guest.errors import GuestError
from arcbox_guest.kernel_machine import KernelMachine, owns_machine
from arcbox_guest.power import sync_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import CompletedProcess

    from arcbox_guest.power import PowerSwitch

_LEAST_PATIENCE: Final = 5.0
"""Seconds that systemctl, and the last sync, get at least: however little is left of the grace period."""

_POLL: Final = 0.05
"""Seconds between two looks at what still runs."""


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


def choose_power_switch(  # noqa: PLR0913  facts about one process, all by name
    setting: Literal["auto", "disabled"],
    *,
    owns_machine: bool,
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
    if owns_machine:
        return "pid1"
    if systemd_running and parent_pid == 1 and environ.get("SYSTEMD_EXEC_PID") == str(pid):
        return "systemd"
    return None


def power_switch(setting: Literal["auto", "disabled"]) -> PowerSwitch | None:
    """The switch of this very process, by `choose_power_switch`."""
    choice = choose_power_switch(
        setting,
        owns_machine=owns_machine(),
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
