"""What Ping and GetSystemInfo answer, on a guest of fakes."""

from __future__ import annotations

import pytest
from attrs import evolve

from arcbox_guest.clock import ClockFollower
from arcbox_guest.system import System
from arcbox_guest.testing import FakeClock, fake_guest, fake_system
from arcbox_handlers import Context
from arcbox_handlers.system import GetSystemInfo, Ping
from arcbox_protocol import arcbox_v1


def ping(clock: FakeClock | None = None, *, follow: bool = True, **fields: str | int) -> arcbox_v1.AgentPingResponse:
    guest = fake_guest(clock=ClockFollower(clock or FakeClock(), enabled=follow))
    request = arcbox_v1.AgentPingRequest()
    for name, value in fields.items():
        setattr(request, name, value)
    return Ping(request)(Context(guest=guest, version="1.2.3"))


def test_a_ping_is_answered_with_pong_and_the_agents_version() -> None:
    assert ping() == arcbox_v1.AgentPingResponse(message="pong", version="1.2.3", protocol_version=1)


@pytest.mark.parametrize("message", ["hello", " ", "größe: 1", "pong"])
def test_a_ping_with_a_message_gets_it_back(message: str) -> None:
    assert ping(message=message).message == f"pong: {message}"


def test_a_ping_with_the_hosts_time_steps_a_clock_that_is_off() -> None:
    clock = FakeClock(5000.0)
    assert ping(clock, timestamp_secs=1000).message == "pong"
    assert clock.steps == [1000.0]


def test_a_ping_with_the_hosts_time_leaves_an_accurate_clock_alone() -> None:
    clock = FakeClock(1000.75)
    ping(clock, timestamp_secs=1000)
    assert clock.steps == []


@pytest.mark.parametrize("timestamp", [0, -5])
def test_a_ping_without_the_hosts_time_leaves_the_clock_alone(timestamp: int) -> None:
    clock = FakeClock(5000.0)
    ping(clock, timestamp_secs=timestamp)
    assert clock.steps == []


def test_a_clock_that_may_not_follow_the_host_is_left_alone() -> None:
    clock = FakeClock(5000.0)
    assert ping(clock, follow=False, timestamp_secs=1000).message == "pong"
    assert clock.steps == []


def test_a_ping_is_answered_although_the_clock_can_not_be_set(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(5000.0, error=PermissionError(1, "Operation not permitted"))
    assert ping(clock, message="hi", timestamp_secs=1000).message == "pong: hi"
    assert [record.message for record in caplog.records] == ["the clock can't be set"]


def system_info(system: System | None = None) -> arcbox_v1.SystemInfo:
    return GetSystemInfo(None)(Context(guest=fake_guest(system=system), version="1.2.3"))


def test_system_info_has_every_fact_in_its_field() -> None:
    assert system_info() == arcbox_v1.SystemInfo(
        kernel_version="6.12.0",
        os_name="Linux",
        os_version="#1 SMP",
        arch="aarch64",
        total_memory=8_589_934_592,
        available_memory=5_368_709_120,
        cpu_count=8,
        load_average=[0.5, 0.25, 0.125],
        hostname="guest",
        uptime=4242,
        ip_addresses=["10.0.2.15", "fd00::15"],
    )


def test_system_info_comes_with_zero_values_for_what_can_not_be_read(caplog: pytest.LogCaptureFixture) -> None:
    def unreadable() -> int:
        raise OSError(5, "Input/output error")

    info = system_info(evolve(fake_system(), cpu_count=unreadable, uptime=unreadable))
    expected = system_info()
    expected.ClearField("cpu_count")
    expected.ClearField("uptime")
    assert info == expected
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_the_real_machine_fits_into_the_message() -> None:
    info = system_info(System())
    assert arcbox_v1.SystemInfo.FromString(info.SerializeToString()) == info
    assert info.os_name == "Linux"
