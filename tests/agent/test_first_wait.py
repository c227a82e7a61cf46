"""Awaiting something, and hearing of its first wait."""

from __future__ import annotations

import pytest
import trio

from arcbox_agent.first_wait import with_first_wait


async def test_what_never_waits_is_not_heard_of() -> None:
    async def quick() -> str:
        return "done"

    waits: list[int] = []
    assert await with_first_wait(quick(), lambda: waits.append(1)) == "done"
    assert waits == []


async def test_the_first_wait_is_heard_of_before_anybody_else_runs() -> None:
    heard: list[str] = []

    async def somebody_else() -> None:
        heard.append("somebody else")

    async def slow() -> str:
        heard.append("begun")
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return "done"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(somebody_else)
        assert await with_first_wait(slow(), lambda: heard.append("waits")) == "done"
    assert heard == ["begun", "waits", "somebody else"]


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
async def test_an_error_leaves_as_it_is(checkpoints: int) -> None:
    async def fail() -> None:
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        raise ValueError("oh")

    with pytest.raises(ValueError, match="oh"):
        await with_first_wait(fail(), lambda: None)


async def test_values_find_their_way_to_what_waits() -> None:
    send, receive = trio.open_memory_channel[int](0)

    async def add() -> int:
        return await receive.receive() + await receive.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, 1)
        nursery.start_soon(send.send, 2)
        assert await with_first_wait(add(), lambda: None) == 3


async def test_a_cancellation_reaches_what_waits_and_may_be_cleaned_up_after() -> None:
    steps: list[str] = []

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            steps.append("cancelled")
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            steps.append("cleaned up")
            raise

    with trio.move_on_after(0) as scope:
        await with_first_wait(wait(), lambda: steps.append("waits"))
    assert scope.cancelled_caught
    assert steps == ["waits", "cancelled", "cleaned up"]
