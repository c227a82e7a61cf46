"""What a guest image has, while it is built: `arcbox-agent check --image ROOT`. Nothing in it is run."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final

from arcbox_agent.check import Found, Probe, rootfs
from arcbox_agent.vsock_cid import TRANSPORT

if TYPE_CHECKING:
    from arcbox_agent._machine import Machine
    from arcbox_agent.check import Finding

_UNITS: Final = ("/lib/systemd/system", "/usr/lib/systemd/system", "/etc/systemd/system")


def _init(machine: Machine) -> Found:
    if any(machine.path(f"{directory}/arcbox-agent.service").exists() for directory in _UNITS):
        if any(machine.path("/etc/systemd/system").glob("*.wants/arcbox-agent.*")):
            return "ok", "a unit of systemd, which is enabled"
        return "missing", "a unit of systemd, which is not enabled: systemctl --root ROOT enable arcbox-agent"
    return "limited", "no unit of systemd: boot it with init=/usr/bin/arcbox-agent"


def _module(name: str, machine: Machine) -> Found:
    versions = sorted(machine.path("/lib/modules").glob("*/"))
    if not versions:
        return "limited", "the image has no modules: the kernel must have it built in"
    lacking = [version.name for version in versions if not _has_module(name, version.name, machine)]
    return ("missing", f"not in {', '.join(lacking)}") if lacking else ("ok", ", ".join(v.name for v in versions))


def _has_module(name: str, version: str, machine: Machine) -> bool:
    listed = machine.read(f"/lib/modules/{version}/modules.dep") + machine.read(
        f"/lib/modules/{version}/modules.builtin"
    )
    return re.search(rf"/{name}\.ko", listed) is not None


def _program(machine: Machine, *names: str) -> Found:
    found = [path for path in map(machine.find, names) if path]
    return ("ok", found[0]) if found else ("missing", f"no {' nor '.join(names)}")


def _cpp_library(machine: Machine) -> Found:
    """What the compiled protobuf is linked with: without it the agent runs, on the interpreted one."""
    for directory in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        for pattern in ("libstdc++.so.6", "*/libstdc++.so.6"):
            if any(machine.path(directory).glob(pattern)):
                return "ok", directory
    return "missing", "no libstdc++.so.6: protobuf would be interpreted, and the agent start and answer slowly"


_SANDBOXES: Final = "sandboxes"

PROBES: Final = (
    Probe("agent", "everything", lambda machine: _program(machine, "arcbox-agent"), essential=True),
    Probe("libstdc++", "protobuf, compiled", _cpp_library, essential=True),
    Probe("init", "starting the agent", _init, essential=True),
    Probe("vsock", "talking to the host", partial(_module, TRANSPORT), essential=True),
    Probe("overlay", _SANDBOXES, partial(_module, "overlay"), essential=True),
    Probe("loop", "root file systems in image files", partial(_module, "loop"), essential=True),
    Probe("squashfs", "root file systems in image files", partial(_module, "squashfs"), essential=True),
    Probe("runtime", _SANDBOXES, lambda machine: _program(machine, "crun", "runc"), essential=True),
    Probe("catatonit", _SANDBOXES, lambda machine: _program(machine, "catatonit"), essential=True),
    Probe("rootfs", _SANDBOXES, rootfs, essential=True),
    Probe("nft", "networks of sandboxes", lambda machine: _program(machine, "nft"), essential=True),
)


def examine_image(machine: Machine) -> tuple[Finding, ...]:
    """Run all probes on a root that nothing runs from."""
    return tuple(probe(machine) for probe in PROBES)
