"""The one way to a peer: whole frames, in the order in which tasks came for their turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.writer import FrameWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.transport import Transport
    from arcbox_protocol import Buffer


@define
class SlowTransport:
    """As much of a transport as a writer needs. Takes nothing at once; a whole part, whenever it is told to."""

    taken: list[bytes] = field(factory=list)
    aborted: bool = False
    _room: trio.Semaphore = field(factory=lambda: trio.Semaphore(0))

    def send_nowait(self, _parts: Sequence[Buffer]) -> int:
        return 0

    async def send(self, data: Buffer) -> None:
        await self._room.acquire()
        self.taken.append(bytes(data))

    async def take(self) -> None:
        self._room.release()
        await wait_all_tasks_blocked()

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def transport() -> SlowTransport:
    return SlowTransport()


@pytest.fixture
def writer(transport: SlowTransport) -> FrameWriter:
    return FrameWriter(cast("Transport", transport))


async def test_frames_of_several_parts_stay_whole(
    transport: SlowTransport, writer: FrameWriter, nursery: trio.Nursery
) -> None:
    nursery.start_soon(writer.write, b"a1", b"a2")
    await wait_all_tasks_blocked()
    nursery.start_soon(writer.write, b"b1", b"b2")
    for _ in range(4):
        await transport.take()
    assert transport.taken == [b"a1", b"a2", b"b1", b"b2"]


async def test_turns_are_given_in_the_order_of_asking(
    transport: SlowTransport, writer: FrameWriter, nursery: trio.Nursery
) -> None:
    for name in (b"a", b"b", b"c"):
        nursery.start_soon(writer.write, name)
        await wait_all_tasks_blocked()
    await transport.take()
    nursery.start_soon(writer.write, b"d")
    for _ in range(3):
        await transport.take()
    assert transport.taken == [b"a", b"b", b"c", b"d"]


async def test_nobody_overtakes_a_task_that_has_just_been_given_its_turn(
    transport: SlowTransport, writer: FrameWriter, nursery: trio.Nursery
) -> None:
    async def write_twice() -> None:
        await writer.write(b"a")
        await writer.write(b"c")

    nursery.start_soon(write_twice)
    await wait_all_tasks_blocked()
    nursery.start_soon(writer.write, b"b")
    await wait_all_tasks_blocked()
    for _ in range(3):
        await transport.take()
    assert transport.taken == [b"a", b"b", b"c"]


async def test_who_gives_up_waiting_leaves_the_turn_to_others(
    transport: SlowTransport, writer: FrameWriter, nursery: trio.Nursery
) -> None:
    nursery.start_soon(writer.write, b"a")
    await wait_all_tasks_blocked()
    with trio.CancelScope() as impatient:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(writer.write, b"b")
            await wait_all_tasks_blocked()
            impatient.cancel()
    nursery.start_soon(writer.write, b"c")
    await transport.take()
    await transport.take()
    assert transport.taken == [b"a", b"c"]
    assert not writer.broken
    assert not transport.aborted


async def test_a_frame_that_was_cut_off_is_the_last_one(transport: SlowTransport, writer: FrameWriter) -> None:
    with trio.CancelScope() as impatient:
        async with trio.open_nursery() as writing:
            writing.start_soon(writer.write, b"a1", b"a2")
            await wait_all_tasks_blocked()
            await transport.take()
            impatient.cancel()
    assert writer.broken
    assert transport.aborted
    with pytest.raises(trio.BrokenResourceError, match="cut off half-way"):
        await writer.write(b"b")


async def test_who_waits_behind_a_frame_that_was_cut_off_is_told(transport: SlowTransport, writer: FrameWriter) -> None:
    told = []

    async def wait_in_line(frame: bytes) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await writer.write(frame)
        told.append(frame)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as impatient:
            async with trio.open_nursery() as writing:
                writing.start_soon(writer.write, b"a1", b"a2")
                await wait_all_tasks_blocked()
                for frame in (b"b", b"c"):
                    nursery.start_soon(wait_in_line, frame)
                    await wait_all_tasks_blocked()
                await transport.take()
                impatient.cancel()
    assert told == [b"b", b"c"]
    assert transport.taken == [b"a1"]
