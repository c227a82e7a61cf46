"""The contract of sandboxes' drivers, in the guest: cgroup2 alone, and the kernel that guests have."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from tests.vm.conftest import Guest

FILES: Final = (
    "test_contract_sandboxes.py",
    "test_contract_processes.py",
    "test_contract_detached.py",
    "test_contract_paused.py",
)

TOO_SLOW: Final = (
    "cancelled",  # at every moment of a creation or an execution: hundreds of them
    "costs_no_memory",  # some hundred MiB of output
    "arrives_whole",  # as much of input
)
"""Parts of names of tests that take minutes on an emulated processor. They run outside, on cgroup v1 and hybrid."""


@pytest.mark.skipif("ARCBOX_TEST_VM_CONTRACT" not in os.environ, reason="takes many minutes: ARCBOX_TEST_VM_CONTRACT=1")
@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the guest's Python, a Debian's 3.11, takes no other's packages"
)
async def test_the_contract_of_sandboxes_holds_on_cgroup2_alone(guest: Guest) -> None:
    rooms = [f"/mnt/checkout/{room}" for room in ("agent", "client", "guest", "handlers", "protocol")]
    packages = f"/mnt/checkout/.venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    tests = [f"tests/guest/sandboxes/{name}" for name in FILES]
    chosen = " and ".join(["crun", *(f"not {part}" for part in TOO_SLOW)])
    await guest.pong()
    await guest.shell("mkdir -p /mnt/checkout && modprobe virtiofs && mount -t virtiofs -o ro checkout /mnt/checkout")
    assert await guest.shell("stat -f -c %T /sys/fs/cgroup") == "cgroup2fs"
    done = await guest.vm.run(
        *("sh", "-c", 'cd /mnt/checkout && exec python3 -B -m pytest "$@"', "sh"),
        *("-q", "-x", "-p", "no:cacheprovider", "--timeout", "300", "-k", chosen, *tests),
        env={"PYTHONPATH": ":".join([*rooms, packages]), "HYPOTHESIS_STORAGE_DIRECTORY": "/run/hypothesis"},
    )
    assert done.status == 0, done.output
    assert " passed" in done.output
    print(done.output.splitlines()[-1])  # noqa: T201  how many, and how long
