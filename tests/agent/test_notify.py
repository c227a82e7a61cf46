"""What systemd is told, over a real datagram socket; and what happens when it does not listen."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


class Manager:
    """The service manager's end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(name.replace("@", "\0", 1))

    def heard(self) -> list[bytes]:
        """Every datagram that has come since the last call."""
        datagrams = []
        with suppress(BlockingIOError):
            while True:
                datagrams.append(self.socket.recv(4096))
        return datagrams


@pytest.fixture(params=["a file", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        name = f"{directory}/notify" if request.param == "a file" else f"@arcbox-{uuid.uuid4()}"
        manager = Manager(name)
        yield manager
        manager.socket.close()


def watchdog(**environ: str) -> float | None:
    return Notifier.from_environ(environ).watchdog_interval


@pytest.mark.parametrize(
    ("assignments", "datagram"),
    [
        ({"READY": "1", "STATUS": "listening on vsock:1024"}, b"READY=1\nSTATUS=listening on vsock:1024"),
        ({"STOPPING": "1"}, b"STOPPING=1"),
        ({"WATCHDOG": "1"}, b"WATCHDOG=1"),
        ({"STATUS": "schläft"}, "STATUS=schläft".encode()),
    ],
)
def test_what_is_told_is_one_datagram_of_variables(
    manager: Manager, assignments: dict[str, str], datagram: bytes
) -> None:
    Notifier.from_environ({"NOTIFY_SOCKET": manager.name}).tell(**assignments)
    assert manager.heard() == [datagram]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n\n", "\v", "\x85", "\u2028", "\0"], ids=ascii)
def test_a_value_can_not_smuggle_in_another_variable(manager: Manager, separator: str) -> None:
    Notifier(manager.name).tell(STATUS=f"unix:/a{separator}MAINPID=1")
    assert manager.heard() == [b"STATUS=unix:/a MAINPID=1"]


def test_a_path_that_is_not_utf_8_does_not_keep_the_rest_from_being_told(manager: Manager) -> None:
    Notifier(manager.name).tell(READY="1", STATUS=os.fsdecode(b"listening on unix:/\xff"))
    (datagram,) = manager.heard()
    assert datagram.startswith(b"READY=1\nSTATUS=listening on unix:/")
    datagram.decode()  # systemd ignores a status that is not UTF-8


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_service_manager_nothing_is_told_and_nothing_logged(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    Notifier.from_environ(environ).tell(READY="1")
    assert not caplog.records


@pytest.mark.parametrize("address", ["/nonexistent/notify", "@nobody-has-bound-this", "/" + 200 * "x", "relative"])
def test_a_service_manager_that_is_gone_is_no_reason_to_fail(address: str, caplog: pytest.LogCaptureFixture) -> None:
    Notifier(address).tell(READY="1")
    assert [record.message for record in caplog.records] == ["the service manager can't be told"]


def test_a_service_manager_that_does_not_read_is_not_waited_for(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(manager.name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
        other.setblocking(False)
        while True:  # until the queue is full
            other.sendto(b"STATUS=busy", manager.name.replace("@", "\0", 1))
    notifier.tell(STOPPING="1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    manager.heard()
    notifier.tell(STOPPING="1")
    assert manager.heard() == [b"STOPPING=1"]


def test_the_watchdog_wants_a_beat_twice_in_its_interval() -> None:
    assert watchdog(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid())) == 15.0


def test_without_a_pid_the_watchdog_means_everyone() -> None:
    assert watchdog(WATCHDOG_USEC="1000000") == 0.5


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid() + 1)},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "me"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": ""},
    ],
)
def test_a_watchdog_that_is_off_or_another_process_s_gets_no_beat(environ: dict[str, str]) -> None:
    assert watchdog(**environ) is None


async def test_beats_come_at_half_the_interval_for_as_long_as_the_loop_turns(
    manager: Manager, autojump_clock: MockClock
) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "10000000"})
    beats: list[tuple[float, int]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.beat)
        for second in range(12):
            await wait_all_tasks_blocked()
            datagrams = manager.heard()
            assert set(datagrams) <= {b"WATCHDOG=1"}
            beats.append((second, len(datagrams)))
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [second for second, count in beats for _ in range(count)] == [0, 5, 10]


async def test_a_loop_that_is_stuck_sends_no_beat(manager: Manager, mock_clock: MockClock) -> None:
    notifier = Notifier(manager.name, watchdog_interval=5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.beat)
        await wait_all_tasks_blocked()
        manager.heard()
        mock_clock.jump(100)  # while this task has the loop
        assert manager.heard() == []
        await wait_all_tasks_blocked()
        assert manager.heard() == [b"WATCHDOG=1"]
        nursery.cancel_scope.cancel()


async def test_without_a_watchdog_beating_is_done_at_once() -> None:
    await Notifier("/nonexistent").beat()
