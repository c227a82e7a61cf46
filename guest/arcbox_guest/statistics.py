"""What the machine and its containers use: one sample of the counters in /proc and /sys. Files as in proc(5)."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.container_cgroups import find_containers
from arcbox_guest.proc_files import memory_sizes, network_bytes, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from arcbox_guest.container_cgroups import ContainerUsage

_SECTOR: Final = 512
"""Bytes, in /proc/diskstats, whatever the disk's own sectors are."""

_NAMES_WITHIN: Final = 1.0
"""Seconds for reading the names of new containers, which are on Docker's own disk."""

_MOST_NAMES: Final = 4096


@frozen(kw_only=True)
class MachineSample:
    """The machine at one moment. What it does not tell is 0."""

    monotonic_ms: int
    cpu_busy_ticks: int
    """Since boot, all but idle and iowait, of all processors."""

    cpu_total_ticks: int
    online_cpus: int
    loadavg1: float
    memory_total_bytes: int
    memory_available_bytes: int
    memory_psi_full_avg10: float
    """Per cent of the last 10 s in which no task could go on for want of memory; -1 where the kernel has no PSI."""

    disk_read_bytes: int
    """Of whole disks that are devices: no partitions, loop devices or mapped ones, whose bytes are theirs."""

    disk_written_bytes: int
    net_rx_bytes: int
    """Of interfaces that are devices: no bridges, and no ends of containers."""

    net_tx_bytes: int
    containers: tuple[tuple[str, ContainerUsage], ...] = ()
    """Docker's, each with its name."""


@define(eq=False)
class MachineStatistics:
    """Takes samples, each in a thread: to read about a hundred files takes milliseconds."""

    _root: Path = Path("/")
    """Where proc, sys and Docker's directory are."""

    _docker_containers: str = "var/lib/docker/containers"
    _names: dict[str, str] = field(init=False, factory=dict)
    """Of the containers that were met, by id; empty for one whose name can't be read."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(4))
    _names_limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(1))

    async def sample(self) -> MachineSample:
        """The machine now."""
        sample, containers = await trio.to_thread.run_sync(self._read, limiter=self._limiter, abandon_on_cancel=True)
        await self._learn_names([container.id for container in containers])
        return sample(containers=tuple((self._names.get(container.id, ""), container) for container in containers))

    async def _learn_names(self, ids: Iterable[str]) -> None:
        new = [container_id for container_id in ids if container_id not in self._names]
        if not new:
            return
        if len(self._names) > _MOST_NAMES:
            self._names.clear()
        self._names |= dict.fromkeys(new, "")  # one try each: that disk may hang
        with trio.move_on_after(_NAMES_WITHIN):
            self._names |= await trio.to_thread.run_sync(
                self._read_names, new, limiter=self._names_limiter, abandon_on_cancel=True
            )

    def _read_names(self, ids: Iterable[str]) -> dict[str, str]:
        names = {}
        for container_id in ids:
            with suppress(OSError, ValueError):
                text = (self._root / self._docker_containers / container_id / "config.v2.json").read_text()
                names[container_id] = str(json.loads(text).get("Name", "")).removeprefix("/")
        return names

    def _read(self) -> tuple[partial[MachineSample], list[ContainerUsage]]:
        proc, sys = self._root / "proc", self._root / "sys"
        busy, total, processors = _cpu(text(proc / "stat"))
        memory = memory_sizes(text(proc / "meminfo"))
        disk_read, disk_written = _disks(text(proc / "diskstats"), sys / "block")
        received, sent = network_bytes(text(proc / "net/dev"), partial(_is_device, sys / "class/net"))
        sample = partial(
            MachineSample,
            monotonic_ms=time.monotonic_ns() // 1_000_000,
            cpu_busy_ticks=busy,
            cpu_total_ticks=total,
            online_cpus=processors,
            loadavg1=float(text(proc / "loadavg").partition(" ")[0] or 0),
            memory_total_bytes=memory.get("MemTotal", 0),
            memory_available_bytes=memory.get("MemAvailable", 0),
            memory_psi_full_avg10=_stalled(text(proc / "pressure/memory")),
            disk_read_bytes=disk_read,
            disk_written_bytes=disk_written,
            net_rx_bytes=received,
            net_tx_bytes=sent,
        )
        return sample, find_containers(sys / "fs/cgroup", proc)


def _cpu(stat: str) -> tuple[int, int, int]:
    """Busy ticks, all ticks, and how many processors are online."""
    busy = total = processors = 0
    for name, *fields in map(str.split, stat.splitlines()):
        if name == "cpu":
            ticks = [int(field) for field in fields[:8]]  # what guests take is in user and nice already
            total = sum(ticks)
            busy = total - sum(ticks[3:5])
        elif name.startswith("cpu"):
            processors += 1
    return busy, total, processors


def _stalled(pressure: str) -> float:
    for line in pressure.splitlines():
        if line.startswith("full avg10="):
            return float(line.split()[1].partition("=")[2])
    return -1.0


def _disks(diskstats: str, block: Path) -> tuple[int, int]:
    read = written = 0
    for fields in _disk_lines(diskstats):
        if _is_device(block, fields[2]):
            read += int(fields[5]) * _SECTOR
            written += int(fields[9]) * _SECTOR
    return read, written


def _disk_lines(diskstats: str) -> Iterator[list[str]]:
    return (fields for fields in map(str.split, diskstats.splitlines()) if len(fields) > 9)


def _is_device(directory: Path, name: str) -> bool:
    """Whether a disk or an interface is a device on some bus, as sysfs(5) has it."""
    return (directory / name / "device").exists()
