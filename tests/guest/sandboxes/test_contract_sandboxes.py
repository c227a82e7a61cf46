"""The contract of drivers: how sandboxes come, end and go. Written once, and held against every driver."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import GuestError, InvalidArgumentError, UnavailableError
from arcbox_guest.sandboxes.model import BindMount, ExecSpec, Spec

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.driver import Driver, Process
    from tests.guest.sandboxes.conftest import World

SLEEP = ExecSpec(argv=("sleep", "1000"))
STUBBORN = ExecSpec(argv=("sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 1000; done"))
LEAVE_BEHIND = ExecSpec(argv=("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo left"))

TRUE = ExecSpec(argv=("true",))


async def run(driver: Driver, command: ExecSpec) -> int:
    async with driver.process("contract", command) as process:
        return await process.wait()


async def trapped(process: Process) -> None:
    """Wait until a process has said something."""
    assert bytes(await process.stdout.receive()) == b"trapped\n"


async def test_a_sandbox_that_was_created_can_run_something(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    assert await run(driver, TRUE) == 0
    assert "contract" in await driver.existing()


async def test_its_host_name_is_its_id(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with driver.process("contract", ExecSpec(argv=("hostname",))) as process:
        assert bytes(await process.stdout.receive()) == b"contract\n"
        assert await process.wait() == 0


async def test_destroy_leaves_nothing_and_may_be_done_again(world: World, driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with driver.process("contract", STUBBORN) as process:
        await trapped(process)
        await driver.destroy("contract")
        assert await process.wait() == 137
    assert "contract" not in await driver.existing()
    assert world.leftovers() == []
    await driver.destroy("contract")
    await driver.destroy("never-there")


async def test_an_id_can_be_used_again(driver: Driver, spec: Spec) -> None:
    for _ in range(3):
        await driver.create(spec)
        assert await run(driver, TRUE) == 0
        await driver.destroy("contract")


async def test_what_a_spec_names_and_is_not_there_is_the_callers_fault_and_leaves_nothing(
    world: World, driver: Driver, spec: Spec
) -> None:
    mount = BindMount(source="/not/there", target="/mnt")
    for impossible in (evolve(spec, rootfs="/not/there"), evolve(spec, mounts=(mount,))):
        with pytest.raises(InvalidArgumentError, match="/not/there"):
            await driver.check(impossible)
        with pytest.raises(InvalidArgumentError, match="/not/there"):
            await driver.create(impossible)
    with pytest.raises(InvalidArgumentError, match="nemo"):
        await driver.check(evolve(spec, user="nemo"))
    await driver.check(evolve(spec, user="nobody"))
    assert world.leftovers() == []


@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_a_creation_that_is_cancelled_leaves_nothing_that_destroy_would_not_clear_away(
    world: World, driver: Driver, spec: Spec, checkpoints: int
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.create, spec)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await driver.destroy("contract")
    assert world.leftovers() == []
    await driver.create(spec)
    assert await run(driver, TRUE) == 0


async def test_stop_kills_all_and_keeps_the_files(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with driver.process("contract", STUBBORN) as process:
        await trapped(process)
        await driver.stop("contract")
        assert await process.wait() == 137
    await driver.stop("contract")
    assert "contract" in await driver.existing()


async def test_nothing_can_be_started_or_measured_in_a_sandbox_that_was_stopped(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    await driver.stop("contract")
    with pytest.raises(UnavailableError, match="contract"):
        await run(driver, TRUE)
    with pytest.raises(UnavailableError, match="contract"):
        await driver.statistics("contract")


async def test_what_is_started_while_the_sandbox_stops_is_refused_or_killed(
    world: World, driver: Driver, spec: Spec
) -> None:
    async def keep_starting() -> None:
        with suppress(GuestError):
            while True:
                async with driver.process("contract", SLEEP) as process:
                    await process.wait()

    await driver.create(spec)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(keep_starting)
        await trio.lowlevel.checkpoint()
        await driver.stop("contract")
    await driver.destroy("contract")
    assert world.leftovers() == []


async def test_terminate_asks_all_that_runs_and_idle_waits_for_the_last(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    idle = trio.Event()

    async def wait_for_idle() -> None:
        await driver.idle("contract")
        idle.set()

    assert await run(driver, LEAVE_BEHIND) == 0
    async with driver.process("contract", STUBBORN) as stubborn, driver.process("contract", SLEEP) as polite:
        await trapped(stubborn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_idle)
            await driver.terminate("contract")
            assert await polite.wait() == 143
            await wait_all_tasks_blocked()
            assert not idle.is_set()
            await stubborn.kill()
            await idle.wait()


async def test_a_sandbox_in_which_nothing_runs_is_idle_and_survives_being_terminated(
    driver: Driver, spec: Spec
) -> None:
    await driver.create(spec)
    await driver.terminate("contract")
    await driver.idle("contract")
    assert await run(driver, TRUE) == 0


async def test_the_end_of_its_init_is_noticed_and_ends_what_runs(world: World, driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with driver.process("contract", SLEEP) as process:
        world.kill_init("contract")
        assert "init" in await driver.ended("contract")
        assert await process.wait() == 137
    with pytest.raises(UnavailableError):
        await run(driver, TRUE)
    await driver.destroy("contract")
    assert world.leftovers() == []


async def test_an_end_that_was_asked_for_is_not_unexpected(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.ended, "contract")
        await wait_all_tasks_blocked()
        await driver.stop("contract")
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_statistics_count_what_runs(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    before = await driver.statistics("contract")
    async with driver.process("contract", STUBBORN) as process:
        await trapped(process)
        during = await driver.statistics("contract")
    assert during.processes > before.processes >= 1
    assert 0 <= before.cpu_seconds <= during.cpu_seconds < math.inf
    assert during.memory_bytes > 0


async def test_two_sandboxes_know_nothing_of_each_other(world: World, driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    await driver.create(evolve(spec, id="neighbor"))
    try:
        async with driver.process("neighbor", SLEEP) as process:
            await driver.idle("contract")
            await driver.destroy("contract")
            assert await driver.existing() == ["neighbor"]
            await process.kill()
            assert await process.wait() == 137
    finally:
        with trio.move_on_after(10, shield=True):
            await driver.destroy("neighbor")
    assert world.leftovers() == []
