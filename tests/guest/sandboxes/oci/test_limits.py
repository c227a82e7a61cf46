"""What a sandbox may use of the machine, and what its neighbours notice of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from arcbox_guest.sandboxes.model import ExecSpec
from arcbox_guest.sandboxes.oci.driver import OciDriver

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from arcbox_guest.sandboxes.driver import Process
    from tests.guest.sandboxes.oci.conftest import Boxes, World

FORK_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 1000"
ECHO = "while read line; do echo $line; done"


def echoing(boxes: Boxes, name: str) -> AbstractAsyncContextManager[Process]:
    return boxes.world.driver.process(name, ExecSpec(argv=("sh", "-c", ECHO)))


async def echoes(process: Process, word: bytes) -> bool:
    await process.send_stdin(word + b"\n")
    return bytes(await process.stdout.receive()) == word + b"\n"


def setting(world: World, name: str) -> str:
    """A file of the cgroups of the sandbox `box`; empty where there is none: v1 and cgroup2 have others."""
    paths = (path / "box" / name for path in world.cgroups())
    return next((path.read_text().strip() for path in paths if path.exists()), "")


async def test_a_memory_hog_is_killed_and_nobody_else_notices(boxes: Boxes) -> None:
    hog = await boxes("hog", memory_mib=32)
    await boxes("neighbour")
    async with echoing(boxes, "neighbour") as outside, echoing(boxes, "hog") as beside:
        assert await echoes(outside, b"before")
        result = await hog.sh("tail /dev/zero")
        assert result.exit_code == 137
        assert await echoes(outside, b"after")
        assert await echoes(beside, b"in the same sandbox")
    assert (await hog.run("true")).exit_code == 0


async def test_files_in_memory_count_as_memory(boxes: Boxes) -> None:
    box = await boxes(memory_mib=32)
    result = await box.sh("head -c 60m /dev/zero >/dev/shm/big; echo $?")
    assert result.stdout.strip() != b"0"


async def test_swap_is_no_way_around_the_limit(boxes: Boxes, world: World) -> None:
    await boxes(memory_mib=32)
    if limit := setting(world, "memory.max"):
        assert (int(limit), int(setting(world, "memory.swap.max") or 0)) == (32 * 2**20, 0)
    else:
        assert int(setting(world, "memory.limit_in_bytes")) == 32 * 2**20
        both = setting(world, "memory.memsw.limit_in_bytes")
        assert both in ("", str(32 * 2**20))  # not every kernel counts swap


async def test_an_init_that_the_limit_costs_is_explained(boxes: Boxes, world: World) -> None:
    await boxes("box", memory_mib=32)
    hog = ExecSpec(argv=("tail", "/dev/zero"))
    async with world.driver.process("box", hog) as process:
        assert await process.wait() == 137
    world.kill_init("box")
    assert "memory limit of 32 MiB was reached" in await world.driver.ended("box")


async def test_a_fork_bomb_stays_in_its_sandbox_which_can_still_be_stopped(boxes: Boxes, world: World) -> None:
    await boxes("bomb", memory_mib=128)
    await boxes("neighbour")
    limited = OciDriver(world.driver.data_dir).max_processes
    async with (
        echoing(boxes, "neighbour") as outside,
        world.driver.process("bomb", ExecSpec(argv=("sh", "-c", FORK_BOMB))) as bomb,
    ):
        await _says_that_it_can_not_fork(bomb)
        assert (await world.driver.statistics("bomb")).processes <= limited
        assert await echoes(outside, b"still here")
        async with world.driver.process("neighbour", ExecSpec(argv=("sh", "-c", "true; true"))) as forking:
            assert await forking.wait() == 0
        await world.driver.stop("bomb")
        assert await bomb.wait() == 137


async def _says_that_it_can_not_fork(process: Process) -> None:
    assert process.stderr is not None
    while b"fork" not in bytes(piece := await process.stderr.receive()):
        assert piece


async def test_the_number_of_processes_is_what_was_set(boxes: Boxes, world: World) -> None:
    world.driver.max_processes = 20
    box = await boxes()
    (cgroup,) = [path for path in world.cgroups() if (path / "box" / "pids.max").exists()]
    assert (cgroup / "box" / "pids.max").read_text() == "20\n"
    result = await box.sh("i=0; while [ $i -lt 40 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done")
    assert b"fork" in result.stderr
    await world.driver.terminate("box")
    await world.driver.idle("box")


async def test_processors_are_shared_out(boxes: Boxes, world: World) -> None:
    await boxes(vcpus=2)
    both = setting(world, "cpu.max") or f"{setting(world, 'cpu.cfs_quota_us')} {setting(world, 'cpu.cfs_period_us')}"
    quota, period = map(int, both.split())
    assert quota == 2 * period


async def test_what_is_used_is_known(boxes: Boxes, world: World) -> None:
    box = await boxes(memory_mib=128)
    before = await world.driver.statistics("box")
    assert before.processes == 1
    await box.sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    async with world.driver.process(
        "box", ExecSpec(argv=("sh", "-c", "head -c 20m /dev/zero >/dev/shm/f; echo; cat"))
    ) as it:
        await it.stdout.receive()
        after = await world.driver.statistics("box")
    assert after.cpu_seconds > before.cpu_seconds + 0.05
    assert after.memory_bytes > before.memory_bytes + 15 * 2**20
    assert after.processes == before.processes + 1


def test_cgroups_of_two_directories_are_two(tmp_path: Path) -> None:
    names = {OciDriver(tmp_path / name)._cgroup for name in ("a", "b", "a/../b")}
    assert len(names) == 2


async def test_limits_hold_for_what_is_left_behind(boxes: Boxes) -> None:
    box = await boxes(memory_mib=32)
    result = await box.sh("(setsid tail /dev/zero; echo killed: $? >/tmp/how) >/dev/null 2>&1 & exit 0")
    assert result.exit_code == 0
    with trio.fail_after(20):
        await boxes.world.driver.idle("box")
    assert (await box.run("cat", "/tmp/how")).text == "killed: 137\n"
