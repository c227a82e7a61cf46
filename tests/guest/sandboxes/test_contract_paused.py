"""The contract of drivers: sandboxes that are paused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.errors import UnavailableError
from arcbox_guest.sandboxes.model import ExecSpec, Spec

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.driver import Driver
    from tests.guest.sandboxes.conftest import World

CAT = ExecSpec(argv=("cat",))
SLEEP = ExecSpec(argv=("sleep", "1000"))


async def test_what_runs_goes_on_where_it_was_when_the_sandbox_is_resumed(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    assert not driver.is_paused("contract")
    async with driver.process("contract", CAT) as process, trio.open_nursery() as nursery:
        for _ in range(2):  # again does nothing
            await driver.pause("contract")
        assert driver.is_paused("contract")
        nursery.start_soon(process.send_stdin, b"late")
        for _ in range(2):
            await driver.resume("contract")
        assert not driver.is_paused("contract")
        assert bytes(await process.stdout.receive()) == b"late"
        await process.close_stdin()
        assert await process.wait() == 0


async def test_what_is_paused_can_be_killed_and_removed(world: World, driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with driver.process("contract", SLEEP) as first, driver.process("contract", SLEEP) as second:
        await driver.pause("contract")
        await first.kill()
        assert await first.wait() == 137
        await driver.destroy("contract")
        assert await second.wait() == 137
    assert world.leftovers() == []
    assert not driver.is_paused("contract")


async def test_what_is_asked_to_end_while_it_is_paused_ends_when_it_goes_on(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    async with driver.process("contract", CAT) as process:
        await process.send_stdin(b"up")
        assert bytes(await process.stdout.receive()) == b"up"
        await driver.pause("contract")
        await driver.terminate("contract")
        await driver.resume("contract")
        assert await process.wait() == 143
        await driver.idle("contract")


async def test_what_a_paused_sandbox_uses_is_known_and_its_network_can_be_entered(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    await driver.pause("contract")
    assert (await driver.statistics("contract")).processes == 1
    assert await driver.listening("contract") == set()
    with driver.network_namespace("contract") as namespace:
        assert os.fstat(namespace)


@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 5])
async def test_a_pause_that_is_cancelled_leaves_the_sandbox_running(
    driver: Driver, spec: Spec, checkpoints: int
) -> None:
    await driver.create(spec)
    paused = trio.Event()

    async def pause() -> None:
        await driver.pause("contract")
        paused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert driver.is_paused("contract") == paused.is_set()


async def test_a_sandbox_whose_init_is_gone_can_not_be_paused(driver: Driver, spec: Spec) -> None:
    await driver.create(spec)
    await driver.stop("contract")
    with pytest.raises(UnavailableError, match="contract"):
        await driver.pause("contract")
