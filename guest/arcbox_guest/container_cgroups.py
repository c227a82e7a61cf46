"""Docker's containers, as their cgroups know them: cgroup2 (cgroups(7)) and cgroup v1, whichever is mounted."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_guest.proc_files import network_bytes, number, text

if TYPE_CHECKING:
    from collections.abc import Iterator

_ID: Final = re.compile(r"(?:docker-)?([0-9a-f]{64})(?:\.scope)?")
"""The directory of a container: its id with Docker's cgroupfs driver, a scope with systemd's."""

_NO_LIMIT: Final = 1 << 60
"""Bytes from which on a limit of cgroup v1 is none: its largest number, rounded down to pages."""


@frozen(kw_only=True)
class ContainerUsage:
    """What a container uses. What its cgroups do not tell is 0."""

    id: str
    cpu_usage_usec: int
    memory_current_bytes: int
    memory_limit_bytes: int
    """0 when there is none."""

    disk_read_bytes: int
    disk_written_bytes: int
    pids: int
    net_rx_bytes: int
    """Of its interfaces but the loopback."""

    net_tx_bytes: int


def find_containers(cgroups: Path, proc: Path) -> list[ContainerUsage]:
    """The containers that have a cgroup, by id. May take a millisecond for each."""
    if (cgroups / "cgroup.controllers").exists():
        pids, read = cgroups, _read_v2
    else:
        pids, read = cgroups / "pids", _read_v1
    # A directory without processes is a leftover.
    found = {key: below for key, below in _directories(pids) if number(pids / below / "pids.current")}
    return [read(cgroups, below, key, proc) for key, below in sorted(found.items())]


def _directories(hierarchy: Path) -> Iterator[tuple[str, Path]]:
    """Those of containers, whatever their cgroup parent is: `docker`, `system.slice`, or what --cgroup-parent says."""
    for parent in (Path(), *map(Path, _names(hierarchy))):
        for name in _names(hierarchy / parent):
            if match := _ID.fullmatch(name):
                yield match[1], parent / name


def _names(directory: Path) -> list[str]:
    """Of the directories in one."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:  # it is gone, or never was
        return []


def _read_v2(cgroups: Path, below: Path, container_id: str, proc: Path) -> ContainerUsage:
    path = cgroups / below
    io = [field.partition("=") for field in text(path / "io.stat").split()]
    received, sent = _network(path, proc)
    return ContainerUsage(
        id=container_id,
        cpu_usage_usec=_keyed(path / "cpu.stat", "usage_usec"),
        memory_current_bytes=number(path / "memory.current"),
        memory_limit_bytes=number(path / "memory.max"),
        disk_read_bytes=sum(int(value) for key, _, value in io if key == "rbytes"),
        disk_written_bytes=sum(int(value) for key, _, value in io if key == "wbytes"),
        pids=number(path / "pids.current"),
        net_rx_bytes=received,
        net_tx_bytes=sent,
    )


def _read_v1(cgroups: Path, below: Path, container_id: str, proc: Path) -> ContainerUsage:
    memory = cgroups / "memory" / below
    blkio = [line.split() for line in text(cgroups / "blkio" / below / "blkio.throttle.io_service_bytes").splitlines()]
    limit = number(memory / "memory.limit_in_bytes")
    received, sent = _network(memory, proc)
    return ContainerUsage(
        id=container_id,
        cpu_usage_usec=number(cgroups / "cpuacct" / below / "cpuacct.usage") // 1000,
        memory_current_bytes=number(memory / "memory.usage_in_bytes"),
        memory_limit_bytes=limit if limit < _NO_LIMIT else 0,
        disk_read_bytes=sum(int(fields[2]) for fields in blkio if fields[1:2] == ["Read"]),
        disk_written_bytes=sum(int(fields[2]) for fields in blkio if fields[1:2] == ["Write"]),
        pids=number(cgroups / "pids" / below / "pids.current"),
        net_rx_bytes=received,
        net_tx_bytes=sent,
    )


def _network(cgroup: Path, proc: Path) -> tuple[int, int]:
    """Bytes received and sent in the network namespace of the container's first process."""
    pid = text(cgroup / "cgroup.procs").partition("\n")[0]
    return network_bytes(text(proc / pid / "net/dev")) if pid else (0, 0)


def _keyed(path: Path, key: str) -> int:
    for name, _, value in (line.partition(" ") for line in text(path).splitlines()):
        if name == key:
            return int(value)
    return 0
