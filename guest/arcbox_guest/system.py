"""What this machine is: kernel, processors, memory, load, addresses."""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@frozen(kw_only=True)
class SystemInfo:
    """One look at the machine. What could not be read has its zero value."""

    kernel_version: str = ""
    os_name: str = ""
    os_version: str = ""
    arch: str = ""
    total_memory: int = 0
    """Bytes."""

    available_memory: int = 0
    """Bytes that programs can get without swapping."""

    cpu_count: int = 0
    load_average: tuple[float, ...] = ()
    """Over 1, 5 and 15 minutes; empty when unknown."""

    hostname: str = ""
    uptime: int = 0
    """Seconds since boot, those of suspension included."""

    ip_addresses: tuple[str, ...] = ()
    """IPv4 and IPv6, without loopback and link-local ones."""


@frozen
class Memory:
    """Sizes in bytes."""

    total: int = 0
    available: int = 0


def warm_up() -> None:
    """Import now, in a thread, what the first `System.info` would otherwise import in the event loop.

    What can't be imported is not this function's to report: `System.info` logs it when it misses it.
    """
    with suppress(Exception):
        import_module("psutil")


def read_memory() -> Memory:
    """The machine's memory, from /proc/meminfo."""
    import psutil  # noqa: PLC0415  25 ms that a ping need not wait for

    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available)


def read_cpu_count() -> int:
    """The processors that are online."""
    count = os.cpu_count()
    if count is None:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    return count


def read_uptime() -> int:
    """Whole seconds since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def read_addresses() -> list[str]:
    """The addresses of all interfaces, IPv6 ones with their scope where they have one."""
    import psutil  # noqa: PLC0415  as in `read_memory`

    families = (AF_INET, AF_INET6)
    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in families
    ]


def reachable(addresses: Sequence[str]) -> tuple[str, ...]:
    """The addresses, each once and without its scope, under which another machine might find this one."""
    found = map(_reachable, addresses)
    return tuple(dict.fromkeys(address for address in found if address is not None))


@lru_cache(maxsize=256)  # the same few each time, and taking them apart is a fifth of a look at the machine
def _reachable(address: str) -> str | None:
    """An address as text, without its scope; None where no other machine could find this one under it."""
    parsed = ip_address(address.partition("%")[0])
    return None if parsed.is_loopback or parsed.is_link_local else str(parsed)


@frozen(kw_only=True)
class System:
    """Looks at the machine. Where it looks can be replaced, source by source."""

    _uname: Callable[[], os.uname_result] = os.uname
    _memory: Callable[[], Memory] = read_memory
    _cpu_count: Callable[[], int] = read_cpu_count
    _load_average: Callable[[], tuple[float, float, float]] = os.getloadavg
    _uptime: Callable[[], int] = read_uptime
    _addresses: Callable[[], Sequence[str]] = read_addresses

    def info(self) -> SystemInfo:
        """One look at the machine, in well under a millisecond. Never fails: what can't be read is logged."""
        uname = _read("uname", self._uname)
        memory = _read("memory", self._memory) or Memory()
        return SystemInfo(
            kernel_version=uname.release if uname else "",
            os_name=uname.sysname if uname else "",
            os_version=uname.version if uname else "",
            arch=uname.machine if uname else "",
            total_memory=memory.total,
            available_memory=memory.available,
            cpu_count=_read("cpu count", self._cpu_count) or 0,
            load_average=_read("load average", self._load_average) or (),
            hostname=uname.nodename if uname else "",
            uptime=_read("uptime", self._uptime) or 0,
            ip_addresses=_read("addresses", lambda: reachable(self._addresses())) or (),
        )


def _read(what: str, source: Callable[[], _T]) -> _T | None:
    try:
        return source()
    except Exception as error:  # noqa: BLE001  a source may fail in any way, and the others still count
        log.warning("%s can't be read", what, extra={"error": repr(error)})
        return None
