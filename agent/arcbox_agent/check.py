"""What this machine offers: `arcbox-agent check`. One small probe for each thing; nothing is changed.

For programs (`--json`) there is one JSON object: `version`, of the agent; `ok`, whether the agent can serve here;
`findings`, a list of objects with the attributes of `Finding`. Names are only ever added.
"""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from attrs import asdict, frozen
from google.protobuf.internal import api_implementation

from arcbox_agent._machine import Machine, ToolError
from arcbox_agent._tables import table
from arcbox_agent.vsock_cid import TRANSPORT
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Status = Literal["ok", "limited", "missing"]

_CAP_SYS_ADMIN: Final = 1 << 21
"""In the capability sets of proc_pid_status(5)."""

_OVERLAY: Final = 0x794C_7630
"""OVERLAYFS_SUPER_MAGIC of linux/magic.h."""

_CONTROLLERS: Final = {"cpu", "memory", "pids"}
"""The cgroup controllers that hold the limits of sandboxes."""

_NAMESPACES: Final = {"cgroup", "ipc", "mnt", "net", "pid", "uts"}
"""The namespaces that isolate sandboxes."""

_COLORS: Final = {"ok": "\033[32m", "limited": "\033[33m", "missing": "\033[31m"}
_PLAIN: Final = "\033[0m"


@frozen(kw_only=True)
class Finding:
    """What a probe found."""

    name: str
    status: Status
    """`limited`: it is there, but may not do."""

    detail: str
    """For people: a version, a path, what is wrong."""

    needed_for: str
    essential: bool = False
    """Whether the agent itself can't do without."""

    @property
    def prevents_serving(self) -> bool:
        """Whether the agent can't run here."""
        return self.essential and self.status == "missing"


Found = tuple[Status, str]
"""Status and detail."""


@frozen
class Probe:
    """One thing to look for."""

    name: str
    needed_for: str
    look: Callable[[Machine], Found]
    essential: bool = False

    def __call__(self, machine: Machine) -> Finding:
        """Look for it. Never raises what comes of a strange machine."""
        try:
            status, detail = self.look(machine)
        except (OSError, ValueError, LookupError) as error:
            status, detail = "limited", f"can't be found out: {error}"
        return Finding(
            name=self.name, status=status, detail=detail, needed_for=self.needed_for, essential=self.essential
        )


def kernel(machine: Machine) -> Found:
    release = machine.read("/proc/sys/kernel/osrelease") or os.uname().release
    return "ok", f"Linux {release}, {os.uname().machine}"


def proc(machine: Machine) -> Found:
    return ("ok", "mounted") if machine.path("/proc/self/status").exists() else ("missing", "/proc is not mounted")


def processors_and_memory(machine: Machine) -> Found:
    total = re.search(r"^MemTotal:\s+(\d+) kB", machine.read("/proc/meminfo"), re.MULTILINE)
    memory = f"{int(total[1]) / 2**20:.1f} GiB" if total else "unknown memory"
    return "ok", f"{machine.cpu_count() or 'unknown'} processors, {memory}"


def open_files(machine: Machine) -> Found:
    limit = machine.file_limit()
    return ("ok" if limit >= 2048 else "limited"), f"at most {limit}"


def init(machine: Machine) -> Found:
    name = machine.read("/proc/1/comm") or "unknown"
    if machine.path("/run/systemd/system").is_dir():  # sd_booted(3)
        return "ok", "systemd runs this machine"
    return "limited", f"PID 1 is {name}: a machine can be powered off where it is systemd, or this agent"


def capabilities(machine: Machine) -> Found:
    if _has_sys_admin(machine):
        return "ok", "CAP_SYS_ADMIN"
    return "missing", "no CAP_SYS_ADMIN: not root, or a container without privileges"


def _has_sys_admin(machine: Machine) -> bool:
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", machine.read("/proc/self/status"), re.MULTILINE)
    return effective is not None and int(effective[1], 16) & _CAP_SYS_ADMIN != 0


def vsock(machine: Machine) -> Found:
    try:
        machine.bind_vsock()
    except OSError as error:
        return "missing", f"no AF_VSOCK socket can be bound: {error.strerror}"
    try:
        cid = machine.read_cid(machine.path("/dev/vsock"))
    except OSError:
        cid = None
    if cid is None:
        listens = any(address.startswith("vsock:") for address in machine.settings.listen)
        why = f"this machine has no CID, and no host will ever connect: is the module {TRANSPORT} loaded?"
        return ("missing" if listens else "limited"), why
    return "ok", f"CID {cid}"


def cgroups(machine: Machine) -> Found:
    v1, v2 = set[str](), set[str]()
    unified = False
    for line in machine.read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount_point, (kind, _, options) = before.split()[4], after.split()
        if kind == "cgroup":
            v1.update(options.split(","))
        elif kind == "cgroup2":
            unified = True
            v2.update(machine.read(f"{mount_point}/cgroup.controllers").split())
    if not (v1 or unified):
        return "missing", "no cgroup hierarchy is mounted"
    version = ("hybrid" if unified else "v1") if v1 else "v2"
    found, lacking = sorted((v1 | v2) & _CONTROLLERS), sorted(_CONTROLLERS - v1 - v2)
    if lacking:
        return "limited", f"{version}, without {', '.join(lacking)}"
    return "ok", f"{version}, with {', '.join(found)}"


def namespaces(machine: Machine) -> Found:
    directory = machine.path("/proc/self/ns")
    found = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set[str]()
    lacking = sorted(_NAMESPACES - found)
    if lacking:
        return "missing", f"the kernel has no {', '.join(lacking)}"
    return "ok", ", ".join(sorted(found & {*_NAMESPACES, "user"}))


def seccomp(machine: Machine) -> Found:
    actions = machine.read("/proc/sys/kernel/seccomp/actions_avail").split()
    if not actions:
        return "missing", "the kernel has no seccomp filters"
    return ("ok" if "errno" in actions else "limited"), ", ".join(actions)


def file_system(name: str, machine: Machine) -> Found:
    known = {line.split()[-1] for line in machine.read("/proc/filesystems").splitlines() if line.strip()}
    if name in known:
        detail = "known to the kernel"
    elif _has_module(name, machine):
        detail = "a module, loaded when it is first mounted"
    else:
        return "missing", "unknown to the kernel"
    return ("ok", detail) if _has_sys_admin(machine) else ("limited", f"{detail}, but mounting takes CAP_SYS_ADMIN")


def _has_module(name: str, machine: Machine) -> bool:
    directory = f"/lib/modules/{machine.read('/proc/sys/kernel/osrelease')}"
    modules = machine.read(f"{directory}/modules.dep")
    return re.search(rf"/{name}\.ko", modules) is not None


def fuse(machine: Machine) -> Found:
    status, detail = file_system("fuse", machine)
    if status == "ok" and not machine.path("/dev/fuse").exists():
        return "limited", f"{detail}, but there is no /dev/fuse"
    return status, detail


def loop_devices(machine: Machine) -> Found:
    control = machine.path("/dev/loop-control")
    if not control.exists():
        return "missing", "no /dev/loop-control"
    return ("ok", "/dev/loop-control") if os.access(control, os.R_OK | os.W_OK) else ("limited", "may not be opened")


def kvm(machine: Machine) -> Found:
    device = machine.path("/dev/kvm")
    if not device.exists():
        return "missing", "no /dev/kvm"
    opened = "" if os.access(device, os.R_OK | os.W_OK) else ", and may not be opened"
    return "limited", f"/dev/kvm exists{opened}; whether it runs a kernel, only a boot can tell"


def tool(name: str, machine: Machine) -> Found:
    path = machine.find(name)
    if path is None:
        return "missing", "not found"
    try:
        return "ok", f"{machine.first_line(path, '--version')} ({path})"
    except ToolError as error:
        return "limited", f"{path} {error}"


def rootfs(machine: Machine) -> Found:
    configured = machine.settings.sandbox.rootfs
    if not configured:
        return "limited", "none by default: each sandbox has to name its own, until the setting sandbox.rootfs is set"
    if not machine.path(configured).exists():
        return "missing", f"{configured} is not there: arcbox-agent rootfs build {configured}"
    return "ok", configured


def data_directory(machine: Machine) -> Found:
    path = machine.settings.sandbox.data_dir
    if machine.file_system(path) == _OVERLAY:
        return (
            "missing",
            f"{path} is on an overlay, on which the kernel lets no other overlay write: mount a disk there",
        )
    return "ok", path


def protobuf(_machine: Machine) -> Found:
    if api_implementation.Type() == "python":
        return "limited", "interpreted: the agent starts and answers slowly; is libstdc++ installed?"
    return "ok", "compiled"


_CONTAINERS, _IMAGES, _SANDBOXES = "container runtime", "sandboxes from images", "sandboxes"

PROBES: Final = (
    Probe("kernel", "everything", kernel),
    Probe("machine", "everything", processors_and_memory),
    Probe("proc", "the agent itself", proc, essential=True),
    Probe("open files", "many connections", open_files),
    Probe("protobuf", "speed", protobuf),
    Probe("init", "Shutdown", init),
    Probe("privileges", "clock, trim, containers, sandboxes", capabilities),
    Probe("vsock", "talking to the host", vsock, essential=True),
    Probe("cgroups", "limits of containers and sandboxes", cgroups),
    Probe("namespaces", "containers and sandboxes", namespaces),
    Probe("seccomp", "containers and sandboxes", seccomp),
    Probe("overlay", "containers and sandboxes", partial(file_system, "overlay")),
    Probe("btrfs", "the data volume", partial(file_system, "btrfs")),
    Probe("ext4", "root file systems in image files", partial(file_system, "ext4")),
    Probe("erofs", "root file systems in image files", partial(file_system, "erofs")),
    Probe("squashfs", "root file systems in image files", partial(file_system, "squashfs")),
    Probe("loop devices", "root file systems in image files", loop_devices),
    Probe("fuse", "file systems of users, inside containers", fuse),
    Probe("kvm", "sandboxes that are virtual machines", kvm),
    Probe("data directory", _SANDBOXES, data_directory),
    Probe("rootfs", _SANDBOXES, rootfs),
    Probe("catatonit", _SANDBOXES, partial(tool, "catatonit")),
    Probe("busybox", "arcbox-agent rootfs build", partial(tool, "busybox")),
    Probe("crun", _SANDBOXES, partial(tool, "crun")),
    Probe("runc", f"{_CONTAINERS}, {_SANDBOXES}", partial(tool, "runc")),
    Probe("containerd", f"{_CONTAINERS}, Kubernetes", partial(tool, "containerd")),
    Probe("dockerd", _CONTAINERS, partial(tool, "dockerd")),
    Probe("k3s", "Kubernetes", partial(tool, "k3s")),
    Probe("nft", "networks of sandboxes", partial(tool, "nft")),
    Probe("iptables", _CONTAINERS, partial(tool, "iptables")),
    Probe("skopeo", _IMAGES, partial(tool, "skopeo")),
    Probe("umoci", _IMAGES, partial(tool, "umoci")),
)


def examine(machine: Machine | None = None) -> tuple[Finding, ...]:
    """Run all probes, those that wait for a tool beside each other; on this machine, if no other is given."""
    machine = machine or Machine()
    with ThreadPoolExecutor() as threads:
        return tuple(threads.map(lambda probe: probe(machine), PROBES))


def for_people(findings: Sequence[Finding]) -> str:
    """A table, coloured on a terminal."""
    colors = _COLORS if sys.stdout.isatty() and "NO_COLOR" not in os.environ else {}
    rows = [(finding.name, finding.status, finding.needed_for, finding.detail) for finding in findings]
    head, *lines = table([("NAME", "STATUS", "NEEDED FOR", "DETAIL"), *rows]).split("\n")
    start = head.index("STATUS")
    for number, finding in enumerate(findings):
        if color := colors.get(finding.status):
            before, after = lines[number][:start], lines[number][start + len(finding.status) :]
            lines[number] = f"{before}{color}{finding.status}{_PLAIN}{after}"
    return "\n".join((head, *lines))


def for_programs(findings: Sequence[Finding]) -> str:
    """The JSON object that the module's docstring describes."""
    ok = not any(finding.prevents_serving for finding in findings)
    return json.dumps({"version": __version__, "ok": ok, "findings": [asdict(f) for f in findings]}, indent=2)
