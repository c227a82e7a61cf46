"""What the runtime is told: the OCI configuration of a sandbox, and of a process that runs in it.

The terms are those of https://github.com/opencontainers/runtime-spec, config.md and config-linux.md.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from arcbox_guest.sandboxes.oci import seccomp
from arcbox_guest.sandboxes.oci.users import Identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec

INIT: Final = "/dev/init"
"""Where the sandbox has its init: in a file system of the runtime's, so that the root's own files stay as they are."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITIES: Final = [
    f"CAP_{name}"
    for name in [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
]
"""As docker has them: root of a sandbox can manage its users and files, and nothing of the machine."""

_MASKED: Final = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READ_ONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_CPU_PERIOD: Final = 100_000
"""Microseconds."""

_SOFT_OPEN_FILES: Final = 1024
"""Programs that close all descriptors before they execute another take a second for a million of them."""


_SYSCTLS: Final = {
    "net.ipv4.ping_group_range": "0 2147483647",
    "net.ipv4.ip_unprivileged_port_start": "0",
}
"""Of the sandbox's own network namespace, as docker has them: any user may ping, and bind port 80."""

_UNLIMITED: Final = 2**64 - 1
"""RLIM_INFINITY, in the configuration."""


def sandbox_config(  # noqa: PLR0913  what a sandbox is made of
    spec: Spec, *, rootfs: str, init: str, cgroups_path: str, max_processes: int, no_new_privileges: bool
) -> dict[str, Any]:
    """The configuration of a sandbox, whose only process is its init: `config.json` of its bundle.

    Args:
        spec: with limits that are above 0.
        rootfs: where its root file system is mounted, and in that its bind mounts.
        init: the path, outside, of a static program that reaps and waits when it is called with -P, as catatonit does.
        cgroups_path: in the hierarchies with the controllers.
        max_processes: how many may run in it.
        no_new_privileges: whether set-user-ID programs and file capabilities give nothing.
    """
    namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"]
    linux = {
        "namespaces": [{"type": name} for name in namespaces],
        "cgroupsPath": cgroups_path,
        "resources": _resources(spec.limits, max_processes),
        "rootfsPropagation": "private",
        "maskedPaths": _MASKED,
        "readonlyPaths": _READ_ONLY,
        "seccomp": seccomp.profile(_CAPABILITIES),
        "sysctl": _SYSCTLS,
    }
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.id,
        "root": {"path": rootfs, "readonly": False},
        "process": _process([INIT, "-P"], {}, "/", Identity(0, 0), no_new_privileges=no_new_privileges),
        "mounts": [*_file_systems(spec.limits), _mount(INIT, "bind", init, ["bind", "rprivate", "ro"])],
        "linux": linux,
    }


def process_config(
    command: ExecSpec, environment: Mapping[str, str], cwd: str, identity: Identity, *, no_new_privileges: bool
) -> dict[str, Any]:
    """The configuration of a process: what `exec --process` takes."""
    process = _process(command.argv, environment, cwd, identity, no_new_privileges=no_new_privileges)
    if command.terminal is not None:
        process["terminal"] = True
        process["consoleSize"] = {"width": command.terminal.columns, "height": command.terminal.rows}
    return process


def environment(spec: Spec, command: ExecSpec, identity: Identity) -> dict[str, str]:
    """What a process finds in its environment: a sane default, the sandbox's own, and the command's own."""
    default = {"PATH": PATH, "HOME": identity.home, "HOSTNAME": spec.id}
    if command.terminal is not None:
        default["TERM"] = "xterm-256color"
    return {**default, **spec.env, **command.env}


def _process(
    argv: Sequence[str], environment: Mapping[str, str], cwd: str, identity: Identity, *, no_new_privileges: bool
) -> dict[str, Any]:
    # Users other than root have no capability, but get those of a file that they execute: sudo is one.
    effective = _CAPABILITIES if identity.uid == 0 else []
    return {
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": cwd,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "umask": 0o022,
            "additionalGids": list(identity.groups),
        },
        "noNewPrivileges": no_new_privileges,
        "capabilities": {"bounding": _CAPABILITIES, "permitted": effective, "effective": effective},
        "rlimits": [
            _limit("RLIMIT_NOFILE", resource.RLIMIT_NOFILE, _SOFT_OPEN_FILES),
            _limit("RLIMIT_CORE", resource.RLIMIT_CORE, 0),
        ],
    }


def _limit(name: str, number: int, soft: int) -> dict[str, Any]:
    """A limit whose hard part is the agent's own: to raise that takes CAP_SYS_RESOURCE."""
    _soft, hard = resource.getrlimit(number)
    hard = _UNLIMITED if hard == resource.RLIM_INFINITY else hard
    return {"type": name, "soft": min(soft, hard), "hard": hard}


def _resources(limits: ResourceLimits, max_processes: int) -> dict[str, Any]:
    size = limits.memory_mib * 2**20
    memory = {"limit": size}
    if _counts_swap():
        memory["swap"] = size  # together with memory, so: none
    return {
        "memory": memory,
        "cpu": {"quota": limits.vcpus * _CPU_PERIOD, "period": _CPU_PERIOD},
        "pids": {"limit": max_processes},
        "devices": [{"allow": False, "access": "rwm"}],
    }


def _counts_swap() -> bool:
    """Whether the kernel has a limit for swap to set: one that can have swap does, though it may be told not to count.

    Whether there is swap just now does not matter: there may be later.
    """
    return Path("/proc/swaps").exists() and "swapaccount=0" not in Path("/proc/cmdline").read_text().split()


def _file_systems(limits: ResourceLimits) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", "proc", safe),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        # What is written there counts as memory of the sandbox, so its limit is the only bound that is needed.
        _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", f"size={limits.memory_mib}m"]),  # noqa: S108  its own
        _mount("/dev/mqueue", "mqueue", "mqueue", safe),
        _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}
