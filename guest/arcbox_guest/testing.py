"""A guest of fakes, for tests of whatever needs a guest.

`fake_guest()` changes nothing on the machine that it runs on, and but for its files knows nothing of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import Factory, define

from arcbox_guest import Guest
from arcbox_guest.clock import ClockFollower
from arcbox_guest.data_volume import DataVolume
from arcbox_guest.disks import Disks
from arcbox_guest.files import Files
from arcbox_guest.kill_switch import KillSwitch
from arcbox_guest.kubernetes.kubernetes import Kubernetes, KubernetesConfig
from arcbox_guest.machine_exec import MachineExec
from arcbox_guest.memory_pressure import MemoryPressure
from arcbox_guest.power import Power
from arcbox_guest.runtime.runtime import ContainerRuntime, RuntimeConfig
from arcbox_guest.sandboxes.files import SandboxFiles
from arcbox_guest.sandboxes.ports import PortForwards
from arcbox_guest.sandboxes.testing import fake_manager
from arcbox_guest.statistics import MachineStatistics
from arcbox_guest.system import Memory, System

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.manager import SandboxManager


@define
class FakeClock:
    """A clock that stands still until it is stepped."""

    time: float = 1_767_225_600.0
    steps: list[float] = Factory(list)
    """Every time that it was set to."""

    error: Exception | None = None
    """Raised in place of a step."""

    def now(self) -> float:
        return self.time

    def step(self, to: float) -> None:
        if self.error is not None:
            raise self.error
        self.steps.append(to)
        self.time = to


@define
class FakePowerSwitch:
    """A switch that is wired to nothing."""

    name: str = "fake"
    pressed: list[float] = Factory(list)
    """The deadline that each press was given, in Trio's time."""

    touched: trio.Event = Factory(trio.Event)
    """Set by a press."""

    error: Exception | None = None
    """Raised by a press, after it was counted."""

    async def off(self, deadline: float) -> None:
        self.pressed.append(deadline)
        self.touched.set()
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error


def fake_system() -> System:
    """A machine that is always the same."""
    return System(
        uname=lambda: os.uname_result(("Linux", "guest", "6.12.0", "#1 SMP", "aarch64")),
        memory=lambda: Memory(total=8_589_934_592, available=5_368_709_120),
        cpu_count=lambda: 8,
        load_average=lambda: (0.5, 0.25, 0.125),
        uptime=lambda: 4242,
        addresses=lambda: ["127.0.0.1", "10.0.2.15", "fd00::15", "fe80::15%eth0"],
    )


def absent_runtime() -> ContainerRuntime:
    """A container runtime of which nothing is installed, and nobody runs it."""
    nowhere = Path("/nonexistent")
    config = RuntimeConfig(
        binary_dirs=(),
        containerd_socket=str(nowhere / "containerd.sock"),
        docker_socket=str(nowhere / "docker.sock"),
        state_dir=nowhere,
        data_base=nowhere,
    )
    return ContainerRuntime(config, DataVolume(nowhere / "data", nowhere, "none", nowhere))


def fake_guest(  # noqa: PLR0913  by name, and each has a default
    *,
    clock: ClockFollower | None = None,
    disks: Disks | None = None,
    files: Files | None = None,
    kill_switch: KillSwitch | None = None,
    machine_exec: MachineExec | None = None,
    memory_pressure: MemoryPressure | None = None,
    power: Power | None = None,
    runtime: ContainerRuntime | None = None,
    sandboxes: SandboxManager | None = None,
    statistics: MachineStatistics | None = None,
    system: System | None = None,
) -> Guest:
    """A guest of fakes, but for the services that are given. Its files are the real ones, which it only reads.

    Its sandboxes are in memory, and there while somebody has `guest.sandboxes.run` running.
    """
    sandboxes = sandboxes or fake_manager()
    runtime = runtime or absent_runtime()
    return Guest(
        clock=clock or ClockFollower(FakeClock(), enabled=True),
        disks=disks or Disks(mounts=()),
        files=files or Files(),
        ports=PortForwards(sandboxes),
        kubernetes=Kubernetes(KubernetesConfig(), runtime),
        kill_switch=kill_switch or KillSwitch(enabled=False),
        machine_exec=machine_exec or MachineExec(enabled=False),
        memory_pressure=memory_pressure or MemoryPressure(),
        power=power or Power(FakePowerSwitch()),
        runtime=runtime,
        sandbox_files=SandboxFiles(sandboxes),
        sandboxes=sandboxes,
        statistics=statistics or MachineStatistics(),
        system=system or fake_system(),
    )
