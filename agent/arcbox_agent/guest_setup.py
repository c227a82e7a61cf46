"""Where settings become the services of the guest."""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_guest import Guest
from arcbox_guest.clock import ClockFollower, SystemClock
from arcbox_guest.data_volume import DataVolume
from arcbox_guest.disks import Disks
from arcbox_guest.files import Files
from arcbox_guest.images.store import ImageStore
from arcbox_guest.kernel_command_line import parameter
from arcbox_guest.kill_switch import KillSwitch
from arcbox_guest.kubernetes.kubernetes import Kubernetes, KubernetesConfig
from arcbox_guest.machine_exec import MachineExec
from arcbox_guest.memory_pressure import MemoryPressure
from arcbox_guest.network.network import NetworkSettings, SandboxNetwork
from arcbox_guest.power import Power, Stopper
from arcbox_guest.power_switches import power_switch
from arcbox_guest.runtime.runtime import ContainerRuntime, RuntimeConfig
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.files import SandboxFiles
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.on_demand import OnDemandDriver
from arcbox_guest.sandboxes.ownership import DataDirectory
from arcbox_guest.sandboxes.ports import PortForwards
from arcbox_guest.sandboxes.records import Records
from arcbox_guest.sandboxes.snapshots import Snapshots
from arcbox_guest.statistics import MachineStatistics
from arcbox_guest.system import System

if TYPE_CHECKING:
    from arcbox_agent.settings import Network, Runtime, Sandbox, Settings
    from arcbox_guest.runtime.containers import ContainerWatch
    from arcbox_guest.sandboxes.driver import Driver

_PORT_VARIABLE: Final = "ARCBOX_GUEST_DOCKER_VSOCK_PORT"
_PORT_PARAMETER: Final = "arcbox.guest_docker_vsock_port"


def build_guest(settings: Settings) -> Guest:
    """The services of the machine that this process runs on."""
    runtime = _runtime(settings.runtime)
    network = _network(settings.network, runtime.containers) if settings.network.enabled else None
    images = image_store(settings)
    sandboxes = _sandbox_manager(settings.sandbox, network, images)
    kubernetes = Kubernetes(KubernetesConfig(args=settings.kubernetes.args), runtime)
    return Guest(
        clock=ClockFollower(SystemClock(), settings.clock.follow_host),
        disks=Disks(settings.disk.trim_mounts),
        files=Files(),
        images=images,
        kill_switch=KillSwitch(settings.machine.allow_kill),
        machine_exec=MachineExec(settings.machine.allow_exec),
        memory_pressure=MemoryPressure(),
        network=network,
        ports=PortForwards(sandboxes),
        kubernetes=kubernetes,
        power=Power(
            power_switch(settings.power.off),
            [
                Stopper("sandboxes", sandboxes.stop_all),
                Stopper("Kubernetes", kubernetes.daemon.stop),
                Stopper("container runtime", runtime.stop),
            ],
        ),
        runtime=runtime,
        sandbox_files=SandboxFiles(sandboxes, settings.sandbox.max_file_mib * 2**20),
        sandboxes=sandboxes,
        statistics=MachineStatistics(),
        system=System(),
    )


def image_store(settings: Settings) -> ImageStore:
    """The images that sandboxes can be made from; they lie beside the sandboxes, where an overlay can use them."""
    directory = Path(settings.sandbox.data_dir) / "store"
    return ImageStore(directory, settings.images.pull_timeout, settings.images.policy)


def _runtime(settings: Runtime) -> ContainerRuntime:
    state_dir, data_base = Path(settings.state_dir), Path(settings.data_base)
    config = RuntimeConfig(
        binary_dirs=settings.binary_dirs,
        containerd_socket=settings.containerd_socket,
        docker_socket=settings.docker_socket,
        state_dir=state_dir,
        data_base=data_base,
        containerd_args=settings.containerd_args,
        dockerd_args=settings.dockerd_args,
        endpoint=f"vsock:{docker_vsock_port()}",
        hung_after_probes=settings.hung_after_probes,
    )
    volume = DataVolume(Path(settings.data_mount), data_base, settings.data_device, state_dir)
    return ContainerRuntime(config, volume)


def docker_vsock_port() -> int:
    """The vsock port of the Docker API: what the environment says, else the kernel command line, else 2375."""
    for text in (os.environ.get(_PORT_VARIABLE), parameter(_PORT_PARAMETER)):
        if text and text.isascii() and text.isdecimal() and 0 < int(text) < 2**32 - 1:
            return int(text)
    return 2375


def _network(settings: Network, containers: ContainerWatch) -> SandboxNetwork:
    network_settings = NetworkSettings(
        bridge=settings.bridge,
        subnet=IPv4Network(settings.subnet),
        dns=settings.dns,
        dns_server=settings.dns_server,
    )
    return SandboxNetwork(network_settings, containers)


def _sandbox_manager(settings: Sandbox, network: SandboxNetwork | None, images: ImageStore) -> SandboxManager:
    data_dir = Path(settings.data_dir)

    def load_driver() -> Driver:
        from arcbox_guest.sandboxes.oci.driver import OciDriver  # noqa: PLC0415  heavy, and not every guest has sandboxes

        return OciDriver(
            data_dir,
            settings.runtime,
            settings.init,
            settings.max_processes,
            no_new_privileges=settings.no_new_privileges,
            network=network,
            kept=settings.kept_output_mib * 2**20,
        )

    return SandboxManager(
        OnDemandDriver("oci", data_dir, load_driver),
        Records(data_dir / "records"),
        EventHub(),
        Defaults(rootfs=settings.rootfs, vcpus=settings.default_vcpus, memory_mib=settings.default_memory_mib),
        network=network,
        images=images,
        data=DataDirectory(data_dir),
        snapshots=Snapshots(data_dir / "snapshots"),
    )
