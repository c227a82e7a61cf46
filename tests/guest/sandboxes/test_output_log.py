"""The log keeps the newest output in a file, whatever the pieces that it comes in."""

from __future__ import annotations

import logging
import resource
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from arcbox_guest.sandboxes.model import ExecSpec, Spec
from arcbox_guest.sandboxes.output_log import DEFAULT_LIMIT, OutputLog, append
from arcbox_guest.sandboxes.records import Records
from arcbox_guest.sandboxes.testing import ROOTFS, FakeDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.testing import MockClock


async def inline(function: Callable[..., object], *args: object) -> None:
    await trio.lowlevel.checkpoint()
    function(*args)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "web.log"


def kept(log: OutputLog) -> bytes:
    return log.path.read_bytes()


@given(pieces=st.lists(st.text("ab\n", max_size=40).map(str.encode)), limit=st.integers(1, 60))
def test_it_holds_the_end_of_what_was_written(pieces: list[bytes], limit: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path, written = Path(directory) / "log", b""
        for piece in pieces:
            append(path, piece, limit)
            written += piece
            newest = path.read_bytes()
            assert written.endswith(newest)
            assert min(len(written), limit) <= len(newest) <= 2 * limit


@given(lines=st.lists(st.text("ab", max_size=9), max_size=60))
def test_its_first_line_is_a_whole_one(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log"
        for line in lines:
            append(path, f"{line}\n".encode(), 20)
        newest = path.read_text().splitlines() if lines else []
        assert newest == lines[len(lines) - len(newest) :]


def test_a_line_that_never_ends_is_cut_where_it_must_be(path: Path) -> None:
    for _ in range(10):
        append(path, b"x" * 15, 20)
    assert 20 <= path.stat().st_size <= 40


def test_who_has_it_open_keeps_what_it_was(path: Path) -> None:
    append(path, b"0123456789", 6)
    with path.open("rb") as opened:
        append(path, b"replaced", 6)
        assert opened.read() == b"0123456789"
    assert path.read_bytes() == b"placed"


def test_it_is_for_nobody_else(path: Path) -> None:
    append(path, b"secret", 3)
    for _ in range(2):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        append(path, b"replaced", 3)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


async def test_a_full_disk_is_told_once_and_what_comes_after_it_has_no_gap(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    log = OutputLog(tmp_path / "full", inline)
    with caplog.at_level(logging.WARNING):
        await log.write(b"lost")
        await log.write(b"room ")
        await log.write(b"again")
    assert [record.message for record in caplog.records] == ["output not kept"]
    assert kept(log) == b"room again"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files can't grow beyond that: what is written across it is cut off there, as on a disk that gets full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_piece_that_a_full_disk_cuts_off_is_not_there_at_all(path: Path) -> None:
    append(path, b"whole ", 100)
    with largest_file(10), pytest.raises(OSError, match="No space left"):
        append(path, b"cut off", 100)
    assert path.read_bytes() == b"whole "


async def test_a_disk_that_stays_broken_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    log = OutputLog(Path("/proc/nowhere/log"), inline)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await log.write(b"lost")
    assert [record.message for record in caplog.records] == ["output not kept"]


class Flood:
    """Output that never makes its reader wait, and uses its buffer again and again."""

    def __init__(self) -> None:
        self.buffer = bytearray(1000)
        self.received = 0

    async def receive(self) -> memoryview:
        self.received += 1
        self.buffer[:] = bytes([self.received % 251]) * 1000
        return memoryview(self.buffer)[: 1000 if self.received < 400 else 0]

    def unread(self) -> int:
        return 1000


async def test_nothing_is_written_after_its_owner_used_the_buffer_for_something_else(path: Path) -> None:
    log = OutputLog(path, trio.to_thread.run_sync)
    await log.copy(Flood())
    assert kept(log) == b"".join(bytes([number % 251]) * 1000 for number in range(1, 400))


async def test_a_flood_does_not_keep_everybody_else_waiting(nursery: trio.Nursery, path: Path) -> None:
    flood = Flood()
    nursery.start_soon(OutputLog(path, inline).copy, flood)
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    assert flood.received < 20
    nursery.cancel_scope.cancel()


async def test_it_copies_all_that_a_process_writes(autojump_clock: MockClock, tmp_path: Path) -> None:
    driver, log = FakeDriver(), Records(tmp_path, run_sync=inline).output("a")
    await driver.create(Spec(id="a", rootfs=ROOTFS))
    async with driver.process("a", ExecSpec(argv=("echo", "one", "two"))) as process:
        await log.copy(process.stdout)
    assert kept(log) == b"one two\n"


async def test_two_streams_do_not_break_each_others_pieces(path: Path) -> None:
    log = OutputLog(path, trio.to_thread.run_sync)
    async with trio.open_nursery() as nursery:
        for letter in b"ab":
            for _ in range(100):
                nursery.start_soon(log.write, bytes([letter]) * 5000)
    newest = kept(log)
    assert DEFAULT_LIMIT <= len(newest) <= 2 * DEFAULT_LIMIT
    pieces = [newest[end - 5000 : end] for end in range(len(newest), 5000, -5000)]
    assert all(len(set(piece)) == 1 for piece in pieces)
