"""Where this machine has its cgroups: cgroup2 alone, or cgroup v1 with a cgroup2 beside it (hybrid).

All that sandboxes need of processes as a group (kill them all at once, know when none is left) is cgroup2's, which is
there in both worlds. Limits and statistics are those of whoever has the controllers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import Factory, frozen

from arcbox_guest import mountinfo
from arcbox_guest.errors import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping


@frozen
class Hierarchies:
    """The cgroup file systems that are mounted."""

    unified: Path
    """cgroup2's."""

    v1: Mapping[str, Path] = Factory(dict)
    """By controller (name=systemd and its like as well); empty where cgroup2 is the only one."""

    @property
    def hybrid(self) -> bool:
        return bool(self.v1)

    def controller(self, name: str) -> Path:
        """The hierarchy with a controller.

        Raises:
            NotSupportedError: none has it.
        """
        if not self.hybrid:
            return self.unified
        if name not in self.v1:
            raise NotSupportedError(f"sandboxes need the cgroup controller {name}, and it is not mounted")
        return self.v1[name]


def find(content: Path = mountinfo.OWN, root: Path = Path("/")) -> Hierarchies:
    """The hierarchies of this machine.

    Args:
        content: a file as in proc_pid_mountinfo(5).
        root: where the paths in it begin.

    Raises:
        NotSupportedError: there is no cgroup2, or it is too old.
    """
    unified: list[Path] = []
    v1: dict[str, Path] = {}
    for mount in mountinfo.mounts(content.read_bytes()):
        path = root / mount.target.lstrip("/")
        if mount.kind == "cgroup2":
            unified.append(path)
        elif mount.kind == "cgroup":
            v1 |= dict.fromkeys(_controllers(mount.options), path)
    if not unified:
        raise NotSupportedError("sandboxes need cgroup2, and it is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
    return Hierarchies(unified[0], v1)


def _controllers(options: str) -> list[str]:
    """Those among the options of a v1 hierarchy's file system."""
    other = {"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"}
    return [option for option in options.split(",") if option not in other and not option.startswith("release_agent=")]
