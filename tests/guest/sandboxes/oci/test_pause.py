"""Paused sandboxes: what runs in them uses no processor, and another agent finds them as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec
from arcbox_guest.sandboxes.oci.driver import OciDriver

if TYPE_CHECKING:
    from tests.guest.sandboxes.oci.conftest import Boxes, World

SLACK = 0.002
"""Seconds of processor time that the kernel may still account for after it says that all are frozen."""

BUSY = ("sh", "-c", "echo up; while :; do :; done")


async def test_what_is_paused_uses_no_processor_while_others_go_on(boxes: Boxes) -> None:
    box, other = await boxes("box"), await boxes("other")
    async with box.driver.process("box", ExecSpec(argv=BUSY)) as process:
        assert bytes(await process.stdout.receive()) == b"up\n"
        await box.driver.pause("box")
        before = (await box.driver.statistics("box")).cpu_seconds
        used = (await other.driver.statistics("other")).cpu_seconds
        while (await other.driver.statistics("other")).cpu_seconds < used + 0.05:
            await other.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        assert (await box.driver.statistics("box")).cpu_seconds < before + SLACK
        await box.driver.resume("box")
        while (await box.driver.statistics("box")).cpu_seconds < before + SLACK:
            await other.run("true")


async def test_another_agents_driver_finds_a_sandbox_paused_and_resumes_it(world: World) -> None:
    spec = Spec(id="box", rootfs=world.rootfs, limits=ResourceLimits(vcpus=1, memory_mib=64))
    facts = await world.driver.create(spec)
    await world.driver.pause("box")
    await world.driver.close()
    driver = OciDriver(world.driver.data_dir, world.driver.runtime)
    try:
        await driver.adopt(spec, facts)
        assert driver.is_paused("box")
        await driver.resume("box")
        async with driver.process("box", ExecSpec(argv=("true",))) as process:
            assert await process.wait() == 0
    finally:
        with trio.move_on_after(20, shield=True):
            await driver.destroy("box")
            await driver.close()
    assert world.leftovers() == []
