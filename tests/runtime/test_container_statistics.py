"""What containers of a real Docker use, in WatchStats and in `arcboxctl top`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import connect
from arcbox_protocol import arcbox_v1
from tests.runtime.conftest import runtime_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client import AgentClient

BUSY = ("sh", "-c", "while :; do :; done")


@pytest.fixture
def cgroup_parent(tmp_path: Path) -> Iterator[str]:
    """A cgroup of the test's own, which Docker makes and does not remove."""
    name = f"arcbox-test-{tmp_path.parent.name}-{tmp_path.name}"
    yield name
    for cgroup in (*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        with suppress(OSError):
            cgroup.rmdir()


async def test_containers_and_what_they_use_are_seen_whatever_cgroup_they_are_in(cgroup_parent: str) -> None:
    with runtime_host() as host, host.agent() as agent:
        async with connect(agent.address) as client:
            async with client.watch_readiness(start_runtime_if_needed=True) as events:
                assert [event.kind async for event in events][-1] == arcbox_v1.ReadinessEvent.RUNTIME_READY
            await host.docker("import", str(host.directory / "rootfs.tar"), "box")
            for options in ((), (f"--cgroup-parent=/{cgroup_parent}",)):
                run = ("run", "--detach", "--network=none", "--memory=64m", *options, "box", *BUSY)
                container = (await host.docker(*run)).decode().strip()
                try:
                    with trio.fail_after(30):
                        await until_it_is_busy(client, container)
                    assert container[:12] in await top(agent.address)
                finally:
                    with trio.move_on_after(20, shield=True):
                        await host.docker("rm", "--force", container)


async def until_it_is_busy(client: AgentClient, container: str) -> None:
    """Wait until two samples show that a container uses the processor."""
    before = 0
    async with client.watch_stats(interval=0.2) as samples:
        async for sample in samples:
            (seen,) = [each for each in sample.containers if each.id == container]
            assert seen.pids == 1
            assert 0 < seen.memory_current_bytes < seen.memory_limit_bytes == 64 << 20
            if 0 < before < seen.cpu_usage_usec:
                return
            before = seen.cpu_usage_usec


async def top(address: str) -> str:
    command = [sys.executable, "-m", "arcbox_client.cli", "--connect", address, "top", "-n", "1"]
    return (await trio.run_process(command, capture_stdout=True)).stdout.decode()
