"""What is said of the machine, and that what can't be read takes nothing else with it."""

from __future__ import annotations

import ipaddress
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import asdict, evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_guest.system import System, SystemInfo, reachable, read_cpu_count, warm_up
from arcbox_guest.testing import fake_system

if TYPE_CHECKING:
    from typing import NoReturn

SOURCES = {
    "uname": {"kernel_version", "os_name", "os_version", "arch", "hostname"},
    "memory": {"total_memory", "available_memory"},
    "cpu_count": {"cpu_count"},
    "load_average": {"load_average"},
    "uptime": {"uptime"},
    "addresses": {"ip_addresses"},
}


def unreadable() -> NoReturn:
    raise FileNotFoundError(2, "No such file or directory")


def run_python(script: str) -> str:
    """What a script prints, in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout  # noqa: S603  our own script


def test_every_fact_comes_from_its_source() -> None:
    assert fake_system().info() == SystemInfo(
        kernel_version="6.12.0",
        os_name="Linux",
        os_version="#1 SMP",
        arch="aarch64",
        total_memory=8 * 2**30,
        available_memory=5 * 2**30,
        cpu_count=8,
        load_average=(0.5, 0.25, 0.125),
        hostname="guest",
        uptime=4242,
        ip_addresses=("10.0.2.15", "fd00::15"),
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_fails_leaves_zero_values_and_a_warning(source: str, caplog: pytest.LogCaptureFixture) -> None:
    info = evolve(fake_system(), **{source: unreadable}).info()
    zeros = {name: value for name, value in asdict(SystemInfo()).items() if name in SOURCES[source]}
    assert asdict(info) == asdict(fake_system().info()) | zeros
    assert [(record.levelno, source.replace("_", " ") in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]


def test_a_machine_that_tells_nothing_is_all_zeros() -> None:
    assert evolve(fake_system(), **dict.fromkeys(SOURCES, unreadable)).info() == SystemInfo()


def test_an_address_that_can_not_be_understood_is_a_source_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    info = evolve(fake_system(), addresses=lambda: ["10.0.2.15", "00:11:22"]).info()
    assert info.ip_addresses == ()
    assert info.hostname == "guest"
    assert len(caplog.records) == 1


def test_an_unknown_number_of_processors_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    with pytest.raises(OSError, match="No data available"):
        read_cpu_count()


def test_loopback_and_link_local_addresses_are_left_out() -> None:
    local = ["127.0.0.1", "127.8.9.10", "::1", "169.254.7.7", "fe80::1", "fe80::1%eth0"]
    assert reachable([*local, "192.0.2.1", "2001:db8::1"]) == ("192.0.2.1", "2001:db8::1")


def test_an_address_of_two_interfaces_is_told_once_and_without_a_scope() -> None:
    assert reachable(["fd00::1%eth0", "10.0.0.1", "fd00::1%eth1"]) == ("fd00::1", "10.0.0.1")


@settings(deadline=None)
@given(st.lists(st.ip_addresses()))
def test_reachable_addresses_are_those_that_are_not_local_in_their_order(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    told = reachable([str(address) for address in addresses])
    wanted = [address for address in addresses if not address.is_loopback and not address.is_link_local]
    assert list(map(ipaddress.ip_address, told)) == list(dict.fromkeys(wanted))


def test_the_real_machine_is_described_as_the_kernel_describes_it() -> None:
    info = System().info()
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert info.kernel_version == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert info.os_name == Path("/proc/sys/kernel/ostype").read_text().strip()
    assert info.os_version == Path("/proc/sys/kernel/version").read_text().strip()
    assert info.hostname == Path("/proc/sys/kernel/hostname").read_text().strip()
    assert info.arch == os.uname().machine
    assert f"{info.total_memory // 1024} kB" == meminfo["MemTotal"].strip()
    assert 0 < info.available_memory <= info.total_memory
    assert info.cpu_count == Path("/proc/cpuinfo").read_text().count("processor\t")
    assert len(info.load_average) == 3


def test_uptime_is_in_seconds_since_boot() -> None:
    before = int(float(Path("/proc/uptime").read_text().split()[0]))
    uptime = System().info().uptime
    assert before <= uptime <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_the_addresses_of_this_machine_are_those_of_its_routing_table() -> None:
    table = Path("/proc/net/fib_trie").read_text().splitlines()
    local = {table[at - 1].split()[-1] for at, line in enumerate(table) if "/32 host LOCAL" in line}
    told = {address for address in System().info().ip_addresses if "." in address}
    assert told == {address for address in local if not address.startswith(("127.", "169.254."))}


def test_the_ipv6_addresses_of_this_machine_are_those_that_the_kernel_lists() -> None:
    table = Path("/proc/net/if_inet6")  # not there on a machine without IPv6, which then has no such address
    lines = table.read_text().splitlines() if table.exists() else []
    listed = (str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in lines)
    found = [address for address in System().info().ip_addresses if ":" in address]
    assert sorted(found) == sorted(reachable(list(listed)))


def test_looking_at_the_machine_runs_no_child_process() -> None:
    forbidden = ("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn")
    script = f"""
import sys
events = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in {forbidden} else None)
from arcbox_guest.system import System
assert System().info().hostname
print(events)
"""
    assert run_python(script) == "[]\n"


def test_after_a_warm_up_looking_at_the_machine_imports_nothing() -> None:
    script = """
import sys
from arcbox_guest.system import System, warm_up
assert "psutil" not in sys.modules, "a ping should not wait for it"
warm_up()
before = set(sys.modules)
System().info()
print(sorted(set(sys.modules) - before))
"""
    assert run_python(script) == "[]\n"


def test_a_warm_up_that_fails_is_nobodys_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    warm_up()
