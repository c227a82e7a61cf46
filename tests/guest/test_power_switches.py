"""Which switch is an agent's to press, and what pressing does. Nothing here can reach the machine's real ones."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, NoReturn

import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_guest import power_switches
from arcbox_guest.errors import GuestError
from arcbox_guest.kernel_machine import KernelMachine, is_running_program
from arcbox_guest.power_switches import (
    Pid1PowerSwitch,
    SystemdPowerSwitch,
    choose_power_switch,
    power_switch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SERVICE = {"SYSTEMD_EXEC_PID": "4242", "INVOCATION_ID": "0123456789abcdef0123456789abcdef"}


# Which one.


def choose(
    setting: Literal["auto", "disabled"] = "auto",
    *,
    owns_machine: bool = False,
    pid: int = 4242,
    parent_pid: int = 1,
    environ: Mapping[str, str] = SERVICE,
    systemd_running: bool = True,
) -> str | None:
    return choose_power_switch(
        setting,
        owns_machine=owns_machine,
        pid=pid,
        parent_pid=parent_pid,
        environ=environ,
        systemd_running=systemd_running,
    )


def test_pid_1_powers_off_by_itself() -> None:
    assert choose(owns_machine=True, pid=1, parent_pid=0, environ={}, systemd_running=False) == "pid1"


def test_the_agent_that_pid_1_runs_powers_off_as_pid_1_does() -> None:
    assert choose(owns_machine=True, pid=7, parent_pid=1, environ={}, systemd_running=False) == "pid1"


def test_a_service_of_systemd_powers_off_through_systemd() -> None:
    assert choose() == "systemd"


def test_a_setting_of_disabled_beats_everything() -> None:
    assert choose("disabled") is None
    assert choose("disabled", owns_machine=True, pid=1, parent_pid=0) is None


def test_a_process_on_a_workstation_powers_nothing_off() -> None:
    assert choose(environ={}, parent_pid=3000) is None


def test_an_orphan_on_a_workstation_powers_nothing_off() -> None:
    assert choose(environ={}) is None


def test_a_process_that_inherited_a_services_environment_is_no_service() -> None:
    assert choose(pid=4243, parent_pid=4242) is None
    assert choose(pid=4243) is None


def test_a_service_of_a_users_own_systemd_powers_nothing_off() -> None:
    assert choose(parent_pid=1500) is None


def test_a_machine_without_systemd_has_no_services_of_it() -> None:
    assert choose(systemd_running=False) is None


def test_the_process_that_runs_the_tests_has_no_switch() -> None:
    assert power_switch("auto") is None
    assert power_switch("disabled") is None


def test_each_choice_is_the_switch_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_switches, "choose_power_switch", lambda *_, **__: "pid1")
    assert isinstance(power_switch("auto"), Pid1PowerSwitch)
    monkeypatch.setattr(power_switches, "choose_power_switch", lambda *_, **__: "systemd")
    assert power_switch("auto") == SystemdPowerSwitch(command=("systemctl", "poweroff"))


# PID 1.


@define
class FakeMachine:
    """A machine with processes that end when the clock says so."""

    processes_until: float = 0
    hangs: threading.Event | None = None
    """What its disks wait for."""

    syncing: threading.Event = field(factory=threading.Event)
    journal: list[str] = field(factory=list)

    def kill_all(self, signal_number: int) -> None:
        self.journal.append(f"{signal.Signals(signal_number).name} at {trio.current_time():g}")

    def has_processes(self) -> bool:
        return trio.current_time() < self.processes_until

    def sync(self) -> None:
        self.journal.append("sync")
        self.syncing.set()
        assert self.hangs is None or self.hangs.wait(30)

    def power_off(self) -> None:
        self.journal.append(f"power off at {trio.current_time():g}")


async def press(machine: FakeMachine, clock: MockClock, *, deadline: float) -> None:
    """Press the switch of PID 1, while the clock goes on whenever everybody waits for it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Pid1PowerSwitch(machine).off, deadline)
        while not any(entry.startswith("SIGKILL") for entry in machine.journal):
            await wait_all_tasks_blocked()
            clock.jump(0.125)


async def test_pid_1_terminates_everything_and_powers_off_as_soon_as_it_is_gone(mock_clock: MockClock) -> None:
    machine = FakeMachine(processes_until=3)
    await press(machine, mock_clock, deadline=20)
    term, kill, sync, off = machine.journal
    assert (term, kill, sync) == ("SIGTERM at 0", "SIGKILL at 3", "sync")
    assert off.startswith("power off")


async def test_pid_1_kills_at_the_deadline_what_did_not_end(mock_clock: MockClock) -> None:
    machine = FakeMachine(processes_until=math.inf)
    await press(machine, mock_clock, deadline=20)
    assert machine.journal[:3] == ["SIGTERM at 0", "SIGKILL at 20", "sync"]
    assert machine.journal[3].startswith("power off")


async def test_pid_1_still_goes_every_step_after_its_deadline(mock_clock: MockClock) -> None:
    machine = FakeMachine(processes_until=math.inf)
    mock_clock.jump(100)
    await press(machine, mock_clock, deadline=90)
    assert machine.journal[:3] == ["SIGTERM at 100", "SIGKILL at 100", "sync"]


async def test_pid_1_powers_off_although_its_disks_hang(mock_clock: MockClock) -> None:
    disks_answer = threading.Event()
    machine = FakeMachine(hangs=disks_answer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Pid1PowerSwitch(machine).off, 5)
            await wait_all_tasks_blocked()
            mock_clock.jump(5)
            await trio.to_thread.run_sync(machine.syncing.wait)
            mock_clock.jump(5)
    finally:
        disks_answer.set()
    assert machine.journal == ["SIGTERM at 0", "SIGKILL at 5", "sync", "power off at 10"]


@pytest.fixture
def system_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been done to this machine: from here on, no way leads to it."""
    calls: list[str] = []

    def record(name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            calls.append(f"{name}{arguments}")
            return 0

        return call

    monkeypatch.setattr(os, "kill", record("kill"))
    monkeypatch.setattr(os, "sync", record("sync"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(reboot=record("reboot")))
    monkeypatch.setattr(ctypes, "c_int", hex)
    return calls


def test_a_process_that_is_not_pid_1_is_refused_everything(system_calls: list[str]) -> None:
    machine = KernelMachine()
    for action in (lambda: machine.kill_all(signal.SIGTERM), machine.has_processes, machine.sync, machine.power_off):
        with pytest.raises(GuestError, match="only PID 1 may do this"):
            action()
    assert system_calls == []


def test_pid_1_makes_the_system_calls_for_it(system_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    machine = KernelMachine()
    machine.kill_all(signal.SIGTERM)
    machine.sync()
    machine.power_off()
    # LINUX_REBOOT_CMD_POWER_OFF of linux/reboot.h
    assert system_calls == [f"kill(-1, {signal.SIGTERM!r})", "sync()", "reboot('0x4321fedc',)"]


def test_nobody_to_signal_is_no_error(system_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_pid: int, _signal: int) -> NoReturn:
        raise ProcessLookupError

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "kill", nobody)
    KernelMachine().kill_all(signal.SIGTERM)
    assert system_calls == []


def test_the_processes_of_this_machine_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert KernelMachine().has_processes()


def stat_line(name: bytes = b"sleep", state: bytes = b"S", flags: int = 0x400000) -> bytes:
    """A line of /proc/PID/stat, proc_pid_stat(5)."""
    return b"77 (%b) %b 1 77 77 0 -1 %d 100 0 0 0 0 0 0 0 20 0 1 0 999\n" % (name, state, flags)


@pytest.mark.parametrize("state", [b"R", b"S", b"D", b"T", b"t", b"I"])
def test_a_program_in_any_living_state_runs(state: bytes) -> None:
    assert is_running_program(stat_line(state=state))


@pytest.mark.parametrize("state", [b"Z", b"X"])
def test_a_zombie_does_not_run(state: bytes) -> None:
    assert not is_running_program(stat_line(state=state))


def test_a_thread_of_the_kernel_is_no_program() -> None:
    assert not is_running_program(stat_line(b"kworker/0:0-events", b"I", flags=0x04208060))  # PF_KTHREAD among others


@settings(deadline=None)
@given(st.binary(max_size=15))
def test_a_program_may_have_any_name(name: bytes) -> None:
    assert is_running_program(stat_line(name))
    assert not is_running_program(stat_line(name, state=b"Z"))


def test_this_process_and_this_kernels_threads_are_told_apart() -> None:
    assert is_running_program(Path("/proc/self/stat").read_bytes())
    for kthreadd in (path for path in Path("/proc").glob("2/stat") if b"(kthreadd)" in path.read_bytes()):
        assert not is_running_program(kthreadd.read_bytes())


# systemd.


def fake_systemctl(directory: Path, script: str) -> SystemdPowerSwitch:
    """The switch, with a shell script for systemctl."""
    path = directory / "systemctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return SystemdPowerSwitch(command=(str(path), "poweroff"))


async def test_systemd_is_told_to_power_off_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    await fake_systemctl(tmp_path, f'echo "$@" >> {log}').off(trio.current_time() + 25)
    assert log.read_text() == "poweroff\n"


async def test_a_systemd_that_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    switch = fake_systemctl(tmp_path, "echo 'Failed: Access denied' >&2; exit 4")
    with pytest.raises(GuestError, match="systemctl poweroff ended with 4: Failed: Access denied"):
        await switch.off(trio.current_time() + 25)


async def test_a_machine_without_systemctl_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="systemctl can't be run"):
        await SystemdPowerSwitch(command=(str(tmp_path / "missing"),)).off(trio.current_time() + 25)


@pytest.mark.parametrize(("deadline", "patience"), [(25, 25), (1, 5), (-10, 5)])
async def test_a_systemctl_that_hangs_is_killed_at_the_deadline_but_has_five_seconds(
    tmp_path: Path, mock_clock: MockClock, deadline: float, patience: float
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    switch = fake_systemctl(tmp_path, f"exec sleep 1000 > {fifo}")
    failures: list[str] = []

    async def press() -> None:
        try:
            await switch.off(deadline)
        except GuestError as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(press)
        alive = await trio.to_thread.run_sync(os.open, fifo, os.O_RDONLY)
        mock_clock.jump(patience - 0.5)
        await wait_all_tasks_blocked()
        assert failures == []
        mock_clock.jump(0.5)
    assert failures == ["systemctl poweroff does not return"]
    assert await trio.to_thread.run_sync(os.read, alive, 1) == b""  # nobody holds the other end any more
    os.close(alive)
