"""A child process whose end somebody waits for while somebody else has done with it."""

from __future__ import annotations

import os
import signal

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest import child
from arcbox_guest.child import Child

SLEEP = ("sleep", "1000")


def end(child: Child) -> None:
    """Kill it, and wait until it has ended."""
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


async def test_an_end_in_the_moment_of_closing_is_seen_by_all_who_wait() -> None:
    sleeper = Child.start(SLEEP)
    codes: list[int] = []

    async def wait() -> None:
        codes.append(await sleeper.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        end(sleeper)  # and no task has had a chance to see it
        await sleeper.close()
    assert codes == [137, 137]


async def test_who_waits_for_a_process_that_cannot_be_killed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Child.start(SLEEP)
    monkeypatch.setattr(child, "_REAPING", 0.01)
    monkeypatch.setattr(os, "killpg", lambda *_: None)  # stands for one that waits for a device
    told: list[trio.ClosedResourceError] = []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError, match="can't be killed") as error:
            await sleeper.wait()
        told.append(error.value)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await sleeper.close()
        assert len(told) == 2
    finally:
        os.kill(sleeper.pid, signal.SIGKILL)
        sleeper._process.wait()
