"""The world of the `oci` driver: a root file system of busybox, and a look at what is left on the machine."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define

from arcbox_guest.sandboxes.busybox import build
from arcbox_guest.sandboxes.oci.driver import OciDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PACKAGES = {"crun": "crun", "runc": "runc", "catatonit": "catatonit", "busybox": "busybox-static"}
"""By the program that is needed of each, of Debian's."""


def missing(*programs: str) -> str:
    """What this machine lacks to run sandboxes, as a reason to skip; empty if nothing.

    Args:
        programs: what is needed beyond the init and the busybox of the root file system.
    """
    if os.geteuid() != 0:
        return "sandboxes take root"
    lacking = [name for name in (*programs, "catatonit", "busybox") if not shutil.which(name)]
    return ", ".join(f"needs {name}, of Debian's package {PACKAGES.get(name, name)}" for name in lacking)


@define(eq=False)
class OciWorld:
    """A driver with a directory of its own, and so with cgroups of its own."""

    driver: OciDriver
    rootfs: str

    def init(self, sandbox_id: str) -> int:
        """The process id of a sandbox's init."""
        return self.driver._live[sandbox_id].init

    def kill_init(self, sandbox_id: str) -> None:
        os.kill(self.init(sandbox_id), signal.SIGKILL)

    def cgroups(self) -> Iterator[Path]:
        """Those of the driver, in every hierarchy."""
        for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            if (root / self.driver._cgroup).is_dir():
                yield root / self.driver._cgroup

    def mounts(self) -> list[str]:
        """What is mounted below the driver's directory, in the agent's mount namespace and in the driver's."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        if self.driver._equipment is not None:
            namespace = self.driver._equipment.namespace
            lines += namespace.call(Path("/proc/thread-self/mountinfo").read_text).splitlines()
        return [line for line in lines if str(self.driver.data_dir) in line]

    def leftovers(self) -> list[str]:
        found = [f"cgroup {path}" for path in self.cgroups()]
        found += [f"process {pid} in {path}" for path in self.cgroups() for pid in processes(path)]
        found += [f"mount {line}" for line in self.mounts()]
        directories = [self.driver.data_dir / name for name in ("images", "runtime", "sandboxes")]
        found += [f"file {path}" for directory in directories if directory.exists() for path in directory.iterdir()]
        return found


def processes(cgroup: Path) -> Iterator[int]:
    """Of a cgroup, and of those below."""
    for path in cgroup.rglob("cgroup.procs"):
        with suppress(OSError):
            yield from map(int, path.read_text().split())


@asynccontextmanager
async def open_world(runtime: str, directory: Path) -> AsyncIterator[OciWorld]:
    """A world in a directory, for as long as the context lasts; nothing of it is left then."""
    rootfs = directory / "rootfs"
    build(rootfs)
    driver = OciDriver(directory / "data", runtime)
    try:
        yield OciWorld(driver, str(rootfs))
    finally:
        with trio.CancelScope(shield=True):  # a test that was cancelled must leave nothing either
            for sandbox_id in await driver.existing():
                await driver.destroy(sandbox_id)
            await driver.close()
