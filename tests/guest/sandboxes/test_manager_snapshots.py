"""Snapshots, as a manager keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import GuestError, NotFoundError
from arcbox_guest.sandboxes.model import Spec
from arcbox_guest.sandboxes.testing import MANY_LAYERS

if TYPE_CHECKING:
    from trio.testing import MockClock

    from arcbox_guest.sandboxes.snapshots import Snapshot
    from tests.guest.sandboxes.conftest import FakeAgent


async def snapshot_with_many_layers(agent: FakeAgent) -> Snapshot:
    """A checkpoint of what was restored from a checkpoint of what was restored, and so on; all others are deleted."""
    await agent.create(Spec(id="box-0"))
    for number in range(MANY_LAYERS):
        snapshot = await agent.manager.checkpoint(f"box-{number}")
        await agent.manager.restore(snapshot.id, f"box-{number + 1}")
        await agent.manager.delete_snapshot(snapshot.id)
        await wait_all_tasks_blocked()
    return await agent.manager.checkpoint(f"box-{MANY_LAYERS}")


async def test_many_layers_are_merged_in_the_background_and_what_was_restored_before_goes_on(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["flatten"] = answers = trio.Event()
    snapshot = await snapshot_with_many_layers(agent)
    old = await agent.manager.restore(snapshot.id, "old")
    assert len(old.spec.layers) == MANY_LAYERS + 1
    answers.set()
    await wait_all_tasks_blocked()
    new = await agent.manager.restore(snapshot.id, "new")
    assert len(new.spec.layers) == 1
    assert agent.driver.layers == {*old.spec.layers, *new.spec.layers}
    for number in range(MANY_LAYERS + 1):
        await agent.manager.remove(f"box-{number}", force=False)
    await agent.manager.remove("old", force=False)
    await agent.manager.delete_snapshot(snapshot.id)
    await wait_all_tasks_blocked()
    assert agent.driver.layers == set(new.spec.layers)


async def test_a_snapshot_that_is_deleted_while_its_layers_are_merged_stays_deleted(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["flatten"] = answers = trio.Event()
    snapshot = await snapshot_with_many_layers(agent)
    await agent.manager.delete_snapshot(snapshot.id)
    answers.set()
    await wait_all_tasks_blocked()
    with pytest.raises(NotFoundError):
        await agent.manager.restore(snapshot.id)
    assert agent.manager.snapshots.list() == []


async def test_deletions_of_snapshots_do_not_wait_for_the_removal_of_files_which_is_done_one_by_one(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="box"))
    snapshots = [await agent.manager.checkpoint("box") for _ in range(3)]
    await agent.manager.remove("box", force=False)
    agent.driver.faults["remove_unused"] = answers = trio.Event()
    before = agent.driver.calls.count(("remove_unused", ""))
    for snapshot in snapshots:
        await agent.manager.delete_snapshot(snapshot.id)
    await wait_all_tasks_blocked()
    assert len(agent.driver.layers) == 3
    assert agent.driver.calls.count(("remove_unused", "")) == before + 1
    answers.set()
    await wait_all_tasks_blocked()
    assert agent.driver.layers == set()


async def test_a_snapshot_that_is_made_while_files_of_others_are_removed_keeps_its_own(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="box"))
    old = await agent.manager.checkpoint("box")
    agent.driver.faults["remove_unused"] = answers = trio.Event()
    await agent.manager.delete_snapshot(old.id)
    await wait_all_tasks_blocked()
    new = await agent.manager.checkpoint("box")
    await agent.manager.remove("box", force=False)
    answers.set()
    await wait_all_tasks_blocked()
    assert agent.driver.layers == set(new.spec.layers)
    await agent.manager.restore(new.id)


@pytest.mark.parametrize("fault", [GuestError("no space left"), RuntimeError("bug")])
async def test_a_snapshot_whose_layers_can_not_be_merged_keeps_them_and_what_was_made_is_removed(
    autojump_clock: MockClock, agent: FakeAgent, fault: Exception
) -> None:
    agent.driver.faults["flatten"] = agent.driver.faults["remove_unused"] = fault
    snapshot = await snapshot_with_many_layers(agent)
    await wait_all_tasks_blocked()
    assert agent.driver.calls[-1] == ("remove_unused", "")
    assert (await agent.manager.restore(snapshot.id)).spec.layers == snapshot.spec.layers
