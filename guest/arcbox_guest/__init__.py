"""The machine: what requests are done to. Plain attrs types in, plain attrs types out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from arcbox_guest.clock import ClockFollower
    from arcbox_guest.disks import Disks
    from arcbox_guest.files import Files
    from arcbox_guest.images.store import ImageStore
    from arcbox_guest.kill_switch import KillSwitch
    from arcbox_guest.kubernetes.kubernetes import Kubernetes
    from arcbox_guest.machine_exec import MachineExec
    from arcbox_guest.memory_pressure import MemoryPressure
    from arcbox_guest.network.network import SandboxNetwork
    from arcbox_guest.power import Power
    from arcbox_guest.runtime.runtime import ContainerRuntime
    from arcbox_guest.sandboxes.files import SandboxFiles
    from arcbox_guest.sandboxes.manager import SandboxManager
    from arcbox_guest.sandboxes.ports import PortForwards
    from arcbox_guest.statistics import MachineStatistics
    from arcbox_guest.system import System


@frozen(kw_only=True)
class Guest:
    """The services of one guest. Built once, in `agent`, and passed to every command."""

    clock: ClockFollower
    disks: Disks
    files: Files
    images: ImageStore | None = None
    """Of OCI images; None where there are none."""

    kill_switch: KillSwitch
    machine_exec: MachineExec
    memory_pressure: MemoryPressure
    network: SandboxNetwork | None = None
    """Of the sandboxes; None where they have loopback only."""

    ports: PortForwards
    """Of the guest, that lead to sandboxes."""

    kubernetes: Kubernetes
    power: Power
    runtime: ContainerRuntime
    sandbox_files: SandboxFiles
    sandboxes: SandboxManager
    statistics: MachineStatistics
    system: System
