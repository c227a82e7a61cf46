"""The contract of sandboxes in the guest: on cgroup2 alone, and on the kernel that guests have.

The tests are those of tests/guest/sandboxes and tests/sandboxes, which run outside on cgroup v1 and hybrid.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import pytest
from attrs import evolve

from tools.vm.image import ROOT, image

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.conftest import Disk, Guest

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the guest's Python, a Debian's 3.11, takes no other's packages"
)

CHOSEN: Final = (
    "test_contract_sandboxes.py::test_destroy_leaves_nothing_and_may_be_done_again[crun]",
    "test_contract_sandboxes.py::test_terminate_asks_all_that_runs_and_idle_waits_for_the_last[crun]",
    "test_contract_sandboxes.py::test_the_end_of_its_init_is_noticed_and_ends_what_runs[crun]",
    "test_contract_sandboxes.py::test_statistics_count_what_runs[crun]",
    "test_contract_processes.py::test_kill_takes_the_whole_tree_even_what_has_a_session_of_its_own[crun]",
    "test_contract_processes.py::test_a_terminal_has_a_size_that_can_change[crun]",
    "test_contract_detached.py::test_kill_takes_the_whole_tree[crun]",
    "test_contract_paused.py::test_what_runs_goes_on_where_it_was_when_the_sandbox_is_resumed[crun]",
    "test_contract_paused.py::test_what_is_paused_can_be_killed_and_removed[crun]",
    "test_contract_paused.py::test_what_a_paused_sandbox_uses_is_known_and_its_network_can_be_entered[crun]",
    "oci/test_limits.py::test_a_memory_hog_is_killed_and_nobody_else_notices[crun]",
    "oci/test_limits.py::test_the_number_of_processes_is_what_was_set[crun]",
)
"""Of tests/guest/sandboxes: what cgroup2 has a part in, in two minutes of an emulated processor."""

WHOLE: Final = (
    *(f"tests/guest/sandboxes/test_contract_{part}.py" for part in ("sandboxes", "processes", "detached", "paused")),
    *(f"tests/guest/sandboxes/oci/test_{part}.py" for part in ("limits", "pause", "snapshots")),
    *(f"tests/sandboxes/test_{part}.py" for part in ("network", "snapshots", "images", "pause")),
)

TOO_SLOW: Final = (
    "cancelled",  # at every moment of a creation or an execution: hundreds of them
    "costs_no_memory",  # some hundred MiB of output
    "arrives_whole",  # as much of input
)
"""Parts of names of tests that take minutes on an emulated processor."""

PACKAGES: Final = ("skopeo", "umoci", "bind9-dnsutils")
"""What some of the whole contract take."""


async def test_what_cgroups_have_a_part_in_holds_on_cgroup2_alone(guest: Guest) -> None:
    await run_in(guest, *(f"tests/guest/sandboxes/{name}" for name in CHOSEN))


@pytest.mark.skipif("ARCBOX_TEST_VM_CONTRACT" not in os.environ, reason="takes half an hour: ARCBOX_TEST_VM_CONTRACT=1")
async def test_the_whole_contract_holds_on_cgroup2_alone(disk: Disk, tmp_path: Path) -> None:
    machine = evolve(
        disk.machine, image=image(*PACKAGES), directory=tmp_path, memory_mib=2048, shares={"checkout": ROOT}
    )
    async with evolve(disk, machine=machine).boot() as guest:
        await run_in(guest, "-k", " and ".join(["not runc", *(f"not {part}" for part in TOO_SLOW)]), *WHOLE)


async def run_in(guest: Guest, *arguments: str) -> None:
    """Have the guest's Python run tests of the checkout with the packages of this one; all of them must pass."""
    rooms = [f"/mnt/checkout/{room}" for room in ("agent", "client", "guest", "handlers", "protocol")]
    packages = f"/mnt/checkout/.venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    await guest.pong()
    await guest.shell("mkdir -p /mnt/checkout && modprobe virtiofs && mount -t virtiofs -o ro checkout /mnt/checkout")
    assert await guest.shell("stat -f -c %T /sys/fs/cgroup") == "cgroup2fs"
    done = await guest.vm.run(
        *("sh", "-c", 'cd /mnt/checkout && exec python3 -B -m pytest "$@"', "sh"),
        *("-v", "--durations=0", "-p", "no:cacheprovider", "--timeout", "300", *arguments),
        env={"PYTHONPATH": ":".join([*rooms, packages]), "HYPOTHESIS_STORAGE_DIRECTORY": "/run/hypothesis"},
    )
    await guest.shell("umount /mnt/checkout")
    assert done.status == 0, done.output
    print(done.output)  # noqa: T201  which, and how long
