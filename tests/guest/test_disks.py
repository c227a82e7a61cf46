"""Which mounts are trimmed, and what is said of each; real file systems are in test_trimming_for_real."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.disks import Disks, TrimResult, mounted_devices
from arcbox_guest.errors import GuestError

if TYPE_CHECKING:
    from trio.testing import MockClock

# Mounted on every Linux, and not one file system.
ROOT, PROC = "/", "/proc"

NAMES = st.binary(min_size=1).filter(lambda name: not set(name) & set(b"/\0"))
MOUNT_POINTS = st.lists(NAMES).map(lambda names: b"/" + b"/".join(names))
DEVICES = st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)).map(lambda numbers: f"{numbers[0]}:{numbers[1]}")


@define
class FakeFitrim:
    """FITRIM that trims nothing, and has it in writing."""

    error: OSError | None = None
    directories: list[str] = field(factory=list)

    def __call__(self, directory: int) -> int:
        self.directories.append(str(Path(f"/proc/self/fd/{directory}").readlink()))
        if self.error is not None:
            raise self.error
        return 4096


def mountinfo_line(mount_point: bytes, device: str, optional: bytes = b"") -> bytes:
    """A line of /proc/PID/mountinfo as the kernel writes it: seq_path() escapes space, tab, newline and backslash."""
    for character in b"\\ \t\n":
        mount_point = mount_point.replace(bytes([character]), b"\\%03o" % character)
    return b"36 35 %b / %b rw,noatime %b- ext4 /dev/root rw\n" % (device.encode(), mount_point, optional)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def unreadable(_path: Path) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


async def test_every_mount_is_trimmed_in_its_order() -> None:
    fitrim = FakeFitrim()
    assert await Disks([PROC, ROOT], fitrim=fitrim).trim() == (TrimResult(PROC, 4096), TrimResult(ROOT, 4096))
    assert fitrim.directories == [PROC, ROOT]


async def test_a_mount_that_is_named_twice_is_trimmed_once() -> None:
    fitrim = FakeFitrim()
    assert await Disks(["/proc/../proc", PROC], fitrim=fitrim).trim() == (TrimResult("/proc/../proc", 4096),)
    assert fitrim.directories == [PROC]


async def test_a_symbolic_link_to_a_mount_is_that_mount(tmp_path: Path) -> None:
    link = tmp_path / "data"
    link.symlink_to(PROC)
    assert await Disks([str(link)], fitrim=FakeFitrim()).trim() == (TrimResult(str(link), 4096),)


async def test_directories_on_which_nothing_is_mounted_are_left_out(tmp_path: Path) -> None:
    fitrim = FakeFitrim()
    assert await Disks([str(tmp_path), str(tmp_path / "missing")], fitrim=fitrim).trim() == ()
    assert fitrim.directories == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOTTY])
async def test_a_file_system_that_can_not_trim_says_so(code: int) -> None:
    fitrim = FakeFitrim(OSError(code, os.strerror(code)))
    assert await Disks([ROOT], fitrim=fitrim).trim() == (TrimResult(ROOT, error="discard not supported"),)


async def test_a_trim_that_fails_is_reported_and_the_next_mount_still_trimmed() -> None:
    fitrim = FakeFitrim(OSError(errno.EIO, "Input/output error"))
    results = await Disks([ROOT, PROC], fitrim=fitrim).trim()
    assert [result.error for result in results] == ["Input/output error"] * 2


async def test_no_descriptor_is_left_behind() -> None:
    disks = Disks([ROOT, PROC], fitrim=FakeFitrim(OSError(errno.EIO, "Input/output error")))
    await disks.trim()
    before = open_descriptors()
    await disks.trim()
    assert open_descriptors() == before


async def test_mounts_that_can_not_be_listed_are_an_error_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(GuestError, match="what is mounted can't be read"):
        await Disks([ROOT]).trim()


async def test_a_trim_keeps_no_other_task_waiting_and_a_cancelled_caller_does_not_wait_for_it() -> None:
    begun, may_end = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(_directory: int) -> int:
        token.run_sync_soon(begun.set)
        assert may_end.wait(30)
        return 0

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Disks([ROOT], fitrim=slow).trim)
            await begun.wait()
            nursery.cancel_scope.cancel()
    finally:
        may_end.set()


async def test_trims_run_one_after_the_other() -> None:
    running, most = 0, 0
    first_began, may_end = threading.Event(), threading.Event()

    def slow(_directory: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        first_began.set()
        assert may_end.wait(30)
        running -= 1
        return 0

    disks = Disks([ROOT], fitrim=slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disks.trim)
        nursery.start_soon(disks.trim)
        await trio.to_thread.run_sync(first_began.wait)
        await wait_all_tasks_blocked()
        may_end.set()
    assert most == 1


@define
class Trims(Disks):
    """Disks whose trims have a given outcome each, and no thread."""

    outcomes: list[tuple[TrimResult, ...] | Exception] = field(factory=list)
    times: list[float] = field(factory=list)

    async def trim(self) -> tuple[TrimResult, ...]:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_the_background_trim_comes_at_every_interval(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disks = Trims([], outcomes=[(TrimResult(ROOT, 512),), (), (TrimResult(PROC, 0),)])
    with caplog.at_level(logging.INFO), trio.move_on_after(3 * 3600 + 1):
        await disks.trim_periodically(3600)
    assert disks.times == [3600, 7200, 10800]
    assert autojump_clock.current_time() == 10801
    assert [(record.message, vars(record)["mount"], vars(record)["bytes"]) for record in caplog.records] == [
        ("trimmed", ROOT, 512),
        ("trimmed", PROC, 0),
    ]


async def test_a_background_trim_that_fails_is_logged_and_tried_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failed = (TrimResult(ROOT, error="discard not supported"),)
    disks = Trims([], outcomes=[GuestError("no mounts"), failed, RuntimeError("a bug")])
    with trio.move_on_after(31):
        await disks.trim_periodically(10)
    assert autojump_clock.current_time() == 31
    assert disks.times == [10, 20, 30]
    assert [record.message for record in caplog.records] == ["trim failed"] * 3


async def test_an_interval_of_0_is_never() -> None:
    disks = Trims([])
    await disks.trim_periodically(0)
    assert disks.times == []


def test_the_mount_on_top_of_a_mount_point_is_the_one_that_counts() -> None:
    lines = mountinfo_line(b"/data", "8:1") + mountinfo_line(b"/data", "0:42", b"shared:7 master:2 ")
    assert mounted_devices(lines) == {"/data": "0:42"}


@settings(deadline=None)
@given(st.dictionaries(MOUNT_POINTS, DEVICES))
def test_mount_points_of_any_name_are_found_with_their_devices(mounts: dict[bytes, str]) -> None:
    lines = b"".join(mountinfo_line(mount_point, device) for mount_point, device in mounts.items())
    assert mounted_devices(lines) == {os.fsdecode(mount_point): device for mount_point, device in mounts.items()}


def test_the_mounts_of_this_machine_have_the_device_numbers_that_stat_tells() -> None:
    device = Path(PROC).stat().st_dev
    assert mounted_devices(Path("/proc/self/mountinfo").read_bytes())[PROC] == f"{os.major(device)}:{os.minor(device)}"
