"""Samples of the machine: the real one's, and one whose files a test writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import asdict

from arcbox_guest.statistics import MachineStatistics

if TYPE_CHECKING:
    from pathlib import Path

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4

FILES = {
    "proc/stat": "cpu  100 20 30 400 50 6 7 8 90 10\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n",
    "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\nHugePages_Total: 0\n",
    "proc/loadavg": "0.75 0.50 0.25 1/100 1234\n",
    "proc/pressure/memory": "some avg10=9.00 avg60=0 avg300=0 total=1\nfull avg10=1.25 avg60=0 avg300=0 total=1\n",
    "proc/diskstats": (
        " 254 0 vda 1 0 10 0 1 0 20 0 0\n 254 1 vda1 1 0 10 0 1 0 20 0 0\n 7 0 loop0 1 0 9 0 1 0 9 0 0\n"
    ),
    "proc/net/dev": (
        "head\nhead\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 11 1 0 0 0 0 0 0 22 2\nbr0: 7 0 0 0 0 0 0 0 7 0\n"
    ),
    "proc/77/net/dev": "head\nhead\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 5 1 0 0 0 0 0 0 6 2\n",
    "sys/block/vda/device/x": "",
    "sys/block/loop0/x": "",
    "sys/class/net/eth0/device/x": "",
    "sys/class/net/br0/x": "",
    f"var/lib/docker/containers/{ID}/config.v2.json": '{"Name": "/web", "other": 1}',
    f"var/lib/docker/containers/{OTHER}/config.v2.json": "not JSON",
}

V2 = {
    "sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n",
    f"sys/fs/cgroup/docker/{ID}/cpu.stat": "usage_usec 1234\nuser_usec 1\n",
    f"sys/fs/cgroup/docker/{ID}/memory.current": "4096\n",
    f"sys/fs/cgroup/docker/{ID}/memory.max": "8192\n",
    f"sys/fs/cgroup/docker/{ID}/io.stat": "254:0 rbytes=10 wbytes=20 rios=1\n7:0 rbytes=1 wbytes=2\n",
    f"sys/fs/cgroup/docker/{ID}/pids.current": "3\n",
    f"sys/fs/cgroup/docker/{ID}/cgroup.procs": "77\n78\n",
    f"sys/fs/cgroup/system.slice/docker-{OTHER}.scope/memory.max": "max\n",
    f"sys/fs/cgroup/system.slice/docker-{OTHER}.scope/pids.current": "1\n",
    f"sys/fs/cgroup/docker/{'0' * 64}/pids.current": "0\n",
    "sys/fs/cgroup/system.slice/ssh.service/memory.max": "max\n",
}

V1 = {
    f"sys/fs/cgroup/memory/docker/{ID}/memory.usage_in_bytes": "4096\n",
    f"sys/fs/cgroup/memory/docker/{ID}/memory.limit_in_bytes": "8192\n",
    f"sys/fs/cgroup/memory/docker/{ID}/cgroup.procs": "77\n",
    f"sys/fs/cgroup/cpuacct/docker/{ID}/cpuacct.usage": "1234567\n",
    f"sys/fs/cgroup/blkio/docker/{ID}/blkio.throttle.io_service_bytes": "254:0 Read 11\n254:0 Write 22\nTotal 33\n",
    f"sys/fs/cgroup/pids/docker/{ID}/pids.current": "3\n",
    f"sys/fs/cgroup/memory/docker/{OTHER}/memory.limit_in_bytes": "9223372036854771712\n",
    f"sys/fs/cgroup/pids/docker/{OTHER}/pids.current": "1\n",
    f"sys/fs/cgroup/memory/docker/{'0' * 64}/memory.limit_in_bytes": "1\n",
}


def machine(root: Path, *files: dict[str, str]) -> MachineStatistics:
    for path, content in {name: text for some in files for name, text in some.items()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return MachineStatistics(root)


async def test_a_sample_has_the_counters_of_processors_memory_disks_and_interfaces(tmp_path: Path) -> None:
    sample = await machine(tmp_path, FILES).sample()
    assert (sample.cpu_total_ticks, sample.cpu_busy_ticks, sample.online_cpus) == (621, 171, 2)
    assert (sample.memory_total_bytes, sample.memory_available_bytes) == (1000 * 1024, 600 * 1024)
    assert (sample.loadavg1, sample.memory_psi_full_avg10) == (0.75, 1.25)
    assert (sample.disk_read_bytes, sample.disk_written_bytes) == (10 * 512, 20 * 512)
    assert (sample.net_rx_bytes, sample.net_tx_bytes) == (11, 22)
    assert sample.containers == ()


@pytest.mark.parametrize("cgroups", [V1, V2], ids=["v1", "v2"])
async def test_a_sample_has_the_containers_of_docker_by_their_cgroups(tmp_path: Path, cgroups: dict[str, str]) -> None:
    statistics = machine(tmp_path, FILES, cgroups)
    for _ in range(2):  # names are read once
        (name, web), (other_name, other) = (await statistics.sample()).containers
        assert (name, web.id, other_name, other.id) == ("web", ID, "", OTHER)
        assert asdict(web) == {
            "id": ID,
            "cpu_usage_usec": 1234,
            "memory_current_bytes": 4096,
            "memory_limit_bytes": 8192,
            "disk_read_bytes": 11,
            "disk_written_bytes": 22,
            "pids": 3,
            "net_rx_bytes": 5,
            "net_tx_bytes": 6,
        }
        assert other.memory_limit_bytes == 0


async def test_what_can_not_be_read_is_zero_and_without_psi_its_average_is_minus_one(tmp_path: Path) -> None:
    sample = asdict(await machine(tmp_path).sample())
    assert sample.pop("monotonic_ms") > 0
    assert sample.pop("memory_psi_full_avg10") == -1
    assert not any(sample.values())


async def test_this_machine_can_be_sampled() -> None:
    statistics = MachineStatistics()
    first, second = await statistics.sample(), await statistics.sample()
    assert first.online_cpus >= 1
    assert 0 < first.memory_available_bytes < first.memory_total_bytes
    assert 0 < first.cpu_busy_ticks <= second.cpu_busy_ticks <= second.cpu_total_ticks
    assert first.monotonic_ms <= second.monotonic_ms
