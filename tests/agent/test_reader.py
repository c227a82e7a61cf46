"""The reader of a connection, beside those of others: who reads at once, and who waits for a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio
from attrs import define, field

from arcbox_agent.reader import FrameReader, ReadCount
from arcbox_protocol import FrameDecoder, MessageType, encode_frame

if TYPE_CHECKING:
    from arcbox_agent.transport import Transport

FRAME = encode_frame(int(MessageType.PingRequest), "")


@define
class FastPeer:
    """A transport that always has a frame more, as with a peer that answers at once. Only what a reader uses of it."""

    name: str
    log: list[str]
    """Names of those who received, in order; a name in brackets when it waited first."""

    _waited: bool = field(init=False, default=False)

    def receive_nowait(self) -> bytes:
        self.log.append(f"({self.name})" if self._waited else self.name)
        self._waited = False
        return FRAME

    async def readable(self) -> None:
        self._waited = True
        await trio.lowlevel.checkpoint()


@pytest.fixture
def log() -> list[str]:
    return []


def reader(name: str, log: list[str], count: ReadCount) -> FrameReader:
    return FrameReader(cast("Transport", FastPeer(name, log)), FrameDecoder(), 30, count)


async def read(reader: FrameReader, batches: int) -> None:
    for _ in range(batches):
        await reader.next_batch()


async def test_the_only_busy_reader_does_not_wait_for_a_peer_that_answers_at_once(log: list[str]) -> None:
    await read(reader("a", log, ReadCount()), 100)
    assert log == ["a"] * 100


async def test_the_only_busy_reader_lets_other_tasks_run_all_the_same(log: list[str]) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await read(reader("a", log, ReadCount()), 100)
    assert 1 <= len(log) < 100


async def test_busy_readers_take_turns(log: list[str]) -> None:
    count = ReadCount()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(read, reader(name, log, count), 200)
    settled = log[100:400]  # when each knows of the others
    assert all(name.startswith("(") for name in settled)
    turns = [settled.count(f"({name})") for name in "abc"]
    assert max(turns) - min(turns) <= 2  # where the rounds are cut


async def test_a_reader_that_is_the_only_busy_one_again_waits_no_more(log: list[str]) -> None:
    count = ReadCount()
    ours, other = reader("a", log, count), reader("b", log, count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, other, 100)
        await read(ours, 100)
    log.clear()
    await read(ours, 50)
    # The first few may still wait: it can't know yet.
    assert log[3:] == ["a"] * 47
