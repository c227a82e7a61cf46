"""What the runtime is told: the OCI configuration of a sandbox, and of a process that runs in it.

The terms are those of https://github.com/opencontainers/runtime-spec, config.md and config-linux.md.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from arcbox_guest.sandboxes.oci import seccomp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec
    from arcbox_guest.sandboxes.oci.users import Identity

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

_OPEN_FILES: Final = 1_048_576


def sandbox_config(spec: Spec, *, rootfs: str, init: str, cgroups_path: str, max_processes: int) -> dict[str, Any]:
    """The configuration of a sandbox, whose only process is its init: `config.json` of its bundle.

    Args:
        spec: with limits that are above 0.
        rootfs: where its root file system is mounted, and in that its bind mounts.
        init: the path, outside, of a static program that reaps and waits when it is called with -P, as catatonit does.
        cgroups_path: in the hierarchies with the controllers.
        max_processes: how many may run in it.
    """
    namespaces = ["pid", "mount", "uts", "ipc", "network", "cgroup"]
    linux = {
        "namespaces": [{"type": name} for name in namespaces],
        "cgroupsPath": cgroups_path,
        "resources": _resources(spec.limits, max_processes),
        "rootfsPropagation": "private",
        "maskedPaths": _MASKED,
        "readonlyPaths": _READ_ONLY,
    }
    if filters := seccomp.profile():
        linux["seccomp"] = filters
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.id,
        "root": {"path": rootfs, "readonly": False},
        "process": _process([INIT, "-P"], {}, "/", uid=0, gid=0),
        "mounts": [*_file_systems(), _mount(INIT, "bind", init, ["bind", "rprivate", "ro"])],
        "linux": linux,
    }


def process_config(command: ExecSpec, environment: Mapping[str, str], cwd: str, identity: Identity) -> dict[str, Any]:
    """The configuration of a process: what `exec --process` takes."""
    process = _process(list(command.argv), environment, cwd, uid=identity.uid, gid=identity.gid)
    process["user"]["additionalGids"] = list(identity.groups)
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


def _process(argv: Sequence[str], environment: Mapping[str, str], cwd: str, *, uid: int, gid: int) -> dict[str, Any]:
    # Users other than root have no capability, but may get those of a file that they execute, were that not ruled out.
    effective = _CAPABILITIES if uid == 0 else []
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    return {
        "args": argv,
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": cwd,
        "user": {"uid": uid, "gid": gid, "umask": 0o022},
        "noNewPrivileges": True,
        "capabilities": {"bounding": _CAPABILITIES, "permitted": effective, "effective": effective},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }


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


def _file_systems() -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", "proc", safe),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),  # noqa: S108  the sandbox's
        _mount("/dev/mqueue", "mqueue", "mqueue", safe),
        _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}
