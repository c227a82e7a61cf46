"""The log keeps the newest output, whatever the pieces that it comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from guest.sandboxes.model import Command, Spec
from guest.sandboxes.output_log import DEFAULT_LIMIT, OutputLog
from guest.sandboxes.testing import ROOTFS, FakeDriver

if TYPE_CHECKING:
    from trio.testing import MockClock


@given(pieces=st.lists(st.binary(max_size=40)), limit=st.integers(0, 60))
def test_it_holds_the_end_of_what_was_written(pieces: list[bytes], limit: int) -> None:
    log = OutputLog(limit)
    for piece in pieces:
        log.write(piece)
    written = b"".join(pieces)
    assert log.read() == written[max(0, len(written) - limit) :]
    assert log.dropped == len(written) - len(log.read())


@pytest.mark.parametrize("size", [1, 4095, 4097, 300_000])
def test_a_flood_leaves_exactly_the_limit(size: int) -> None:
    log = OutputLog()
    for number in range(-(-2 * DEFAULT_LIMIT // size)):
        log.write(bytes([number % 251]) * size)
    assert len(log.read()) == DEFAULT_LIMIT


def test_many_small_writes_cost_no_memory_for_each() -> None:
    log = OutputLog()
    for _ in range(DEFAULT_LIMIT):
        log.write(b"x")
    assert len(log._pieces) < 100


def test_a_view_may_be_reused_by_its_owner() -> None:
    buffer = bytearray(b"first")
    log = OutputLog()
    log.write(memoryview(buffer))
    buffer[:] = b"later"
    assert log.read() == b"first"


class Flood:
    """Output that never makes its reader wait."""

    async def receive(self) -> memoryview:
        return memoryview(b"x" * 1000)

    def unread(self) -> int:
        return 1000


async def test_a_flood_does_not_keep_everybody_else_waiting(nursery: trio.Nursery) -> None:
    nursery.start_soon(OutputLog().copy, Flood())
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


async def test_it_copies_all_that_a_process_writes(autojump_clock: MockClock) -> None:
    driver, log = FakeDriver(), OutputLog()
    await driver.create(Spec(id="a", rootfs=ROOTFS))
    async with driver.process("a", Command(argv=("echo", "one", "two"))) as process:
        await log.copy(process.stdout)
    assert log.read() == b"one two\n"
