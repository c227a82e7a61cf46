"""Cgroups where there is only cgroup2, as in most guests.

A directory tree stands in for the kernel's where tests run in hybrid; for real, the same paths are run in a guest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from arcbox_guest.errors import NotSupportedError
from arcbox_guest.sandboxes.model import Statistics
from arcbox_guest.sandboxes.oci import hierarchies
from arcbox_guest.sandboxes.oci.cgroups import SandboxCgroups
from arcbox_guest.sandboxes.oci.hierarchies import Hierarchies

if TYPE_CHECKING:
    from pathlib import Path

CGROUP2_ALONE = """\
22 1 8:1 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""

HYBRID = """\
30 22 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/with\\040space rw,nosuid - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
"""


def find(tmp_path: Path, mountinfo: str) -> Hierarchies:
    (tmp_path / "mountinfo").write_text(mountinfo)
    return hierarchies.find(tmp_path / "mountinfo", tmp_path)


@pytest.fixture
def cgroups(tmp_path: Path) -> SandboxCgroups:
    """Those of a sandbox `box`, made as the driver and the runtime make them."""
    cgroups = SandboxCgroups(Hierarchies(tmp_path), "arcbox-1", "box")
    cgroups.create()
    cgroups.tree.mkdir(parents=True)
    cgroups.adopt(4711)
    return cgroups


def test_cgroup2_alone_has_all_controllers(tmp_path: Path) -> None:
    found = find(tmp_path, CGROUP2_ALONE)
    assert not found.hybrid
    assert found.unified == found.controller("memory") == tmp_path / "sys/fs/cgroup"


def test_in_hybrid_each_controller_has_its_own_place(tmp_path: Path) -> None:
    found = find(tmp_path, HYBRID)
    assert found.hybrid
    assert found.unified == tmp_path / "sys/fs/cgroup/unified"
    assert found.controller("cpuacct") == tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    assert found.controller("memory") == tmp_path / "sys/fs/cgroup/with space"
    assert set(found.v1) == {"cpu", "cpuacct", "memory", "name=systemd"}
    with pytest.raises(NotSupportedError, match="pids"):
        found.controller("pids")


def test_without_cgroup2_there_are_no_sandboxes(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="cgroup2"):
        find(tmp_path, CGROUP2_ALONE.splitlines()[0] + "\n")


def test_the_runtimes_clients_are_not_among_the_sandboxs_own_processes(cgroups: SandboxCgroups, tmp_path: Path) -> None:
    group = cgroups.group(7)
    group.create()
    assert group.runtime_name == "p/7"
    assert group.path == tmp_path / "arcbox-1/box/p/7"
    assert group.entry == tmp_path / "arcbox-1/.clients/box/7"
    assert group.path.is_dir()
    group.enter(os.getpid())
    assert (group.entry / "cgroup.procs").read_text() == str(os.getpid())
    assert not (group.path / "cgroup.procs").exists()


def test_the_runtime_moves_the_init_itself(cgroups: SandboxCgroups) -> None:
    assert not (cgroups.tree / "cgroup.procs").exists()
    assert cgroups.runtime_path == "/arcbox-1/box"


def test_no_controller_is_handed_down_so_that_the_init_may_live_beside_its_processes(cgroups: SandboxCgroups) -> None:
    """The kernel allows no processes beside cgroups with controllers: "no internal process constraint", cgroups(7)."""
    cgroups.group(1).create()
    assert not list(cgroups.tree.rglob("cgroup.subtree_control"))


def test_a_kill_reaches_the_client_first_and_then_what_it_started(cgroups: SandboxCgroups) -> None:
    group = cgroups.group(1)
    group.create()
    for path in (group.entry, group.path):
        (path / "cgroup.kill").touch()
    group.kill()
    assert [(path / "cgroup.kill").read_text() for path in (group.entry, group.path)] == ["1", "1"]


def test_what_is_used_is_read_where_the_limits_are(cgroups: SandboxCgroups) -> None:
    group = cgroups.group(1)
    group.create()
    files = {
        "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
        "memory.current": "9000000\n",
        "memory.stat": "anon 5000000\nfile 4000000\ninactive_file 3000000\n",
        "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\n",
        "cgroup.procs": "4711\n",
        "p/1/cgroup.procs": "4712\n4713\n",
    }
    for name, text in files.items():
        (cgroups.tree / name).write_text(text)
    assert cgroups.statistics() == Statistics(cpu_seconds=2.5, memory_bytes=6_000_000, processes=3)
    assert cgroups.out_of_memory_kills() == 2


def test_what_is_gone_has_nothing_to_tell(tmp_path: Path) -> None:
    gone = SandboxCgroups(Hierarchies(tmp_path), "arcbox-1", "gone")
    assert not gone.exist()
    assert gone.out_of_memory_kills() == 0
    with pytest.raises(OSError, match=r"cpu\.stat"):
        gone.statistics()


async def test_all_of_it_can_be_removed(cgroups: SandboxCgroups, tmp_path: Path) -> None:
    cgroups.group(1).create()
    assert cgroups.exist()
    await cgroups.remove()
    assert not cgroups.exist()
    assert sorted(path.name for path in (tmp_path / "arcbox-1").iterdir()) == [".clients"]
    await cgroups.remove()
