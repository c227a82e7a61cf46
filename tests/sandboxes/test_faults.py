"""An agent may be killed at any step of anything: the next one finds a consistent world, and goes on with it."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import frozen

from arcbox_client._agent_process import SETTINGS
from arcbox_client.errors import ConflictError
from arcbox_client.handles import SandboxHandle
from arcbox_guest.sandboxes.busybox import build
from tests.sandboxes.conftest import make_image
from tests.sandboxes.faults import LIVE, Faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

SHARE: Final = os.environ.get("ARCBOX_TEST_FAULTS", "")
"""Steps of each operation at which an agent is killed, or `all`; empty for two of some operations."""

COUNT: Final = "for i in 0 1 2; do echo $i; sleep 0.05; done; exec sleep 100000"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("nft", "ip", "unshare", "mksquashfs", "skopeo", "umoci"))),
    reason="needs Debian's nftables, iproute2, util-linux, squashfs-tools, skopeo and umoci",
)


@pytest.fixture
def faults(machine: Machine) -> Iterator[Faults]:
    image = machine.directory / "rootfs.squashfs"
    build(image)
    settings = SETTINGS.replace("network.enabled = false\n", "").replace("stop_at_exit = true", "stop_at_exit = false")
    with Faults.on(machine, f'{settings}sandbox.rootfs = "{image}"\n') as faults:
        yield faults


@frozen
class Operation:
    """What an agent is asked for, and killed meanwhile."""

    prepare: Callable[[Faults, AgentClient], Awaitable[None]]
    """Have all that it needs, where there is nothing."""

    request: Callable[[Faults, AgentClient], Awaitable[object]]
    check: Callable[[Faults, AgentClient], Awaitable[None]]
    """Find that the next agent can do it, whatever the one that was killed has done of it."""


def of_client(
    request: Callable[[AgentClient], Awaitable[object]],
) -> Callable[[Faults, AgentClient], Awaitable[object]]:
    """A request that takes a client only."""
    return lambda _faults, client: request(client)


async def state_of(client: AgentClient, name: str) -> str:
    return {box.id: box.state for box in (await client.sandbox_list()).sandboxes}.get(name, "")


async def shell(client: AgentClient, name: str, script: str) -> str:
    completed = await client.run(name, ["sh", "-c", script])
    return completed.stdout.decode()


async def nothing(_faults: Faults, _client: AgentClient) -> None:
    """Needs nothing."""


async def create_counting(client: AgentClient) -> None:
    await client.sandbox_create("box", cmd=["sh", "-c", COUNT], memory_mib=64, wait=True)


async def check_creation(faults: Faults, client: AgentClient) -> None:
    if await state_of(client, "box") in LIVE:
        await check_counting(faults, client)
        with pytest.raises(ConflictError):
            await create_counting(client)
    await client.sandbox_remove("box", force=True)
    await create_counting(client)
    await check_counting(faults, client)


async def check_counting(faults: Faults, client: AgentClient) -> None:
    """The initial command runs, and nothing of its output is missing."""
    await faults.machine.until(client, "box", "running")
    log = trio.Path(faults.machine.data_dir, "records", "box.log")
    with trio.fail_after(20):
        while not await log.exists() or await log.read_bytes() != b"0\n1\n2\n":  # noqa: ASYNC110  the agent is not in here
            await trio.sleep(0.01)


async def ready_box(_faults: Faults, client: AgentClient) -> None:
    await client.sandbox_create("box", memory_mib=64, wait=True)
    await shell(client, "box", "echo kept > /kept")


async def counting_box(faults: Faults, client: AgentClient) -> None:
    await create_counting(client)
    await check_counting(faults, client)


async def run(client: AgentClient) -> str:
    return await shell(client, "box", "echo ran; sleep 0.01")


async def check_run(_faults: Faults, client: AgentClient) -> None:
    assert "echo ran" not in await shell(client, "box", "ps -o args")
    assert await run(client) == "ran\n"


async def start_execution(client: AgentClient) -> None:
    await client.execution_start("box", ["sh", "-c", "seq 1000; exit 7"], execution_id="job")


async def check_execution(_faults: Faults, client: AgentClient) -> None:
    await start_execution(client)
    completed = await SandboxHandle(client, "box").execution("job").collect()
    assert completed.exit_code == 7
    assert completed.stdout.decode().split() == [str(number) for number in range(1, 1001)]


async def checkpoint(client: AgentClient) -> object:
    return await client.checkpoint("box")


async def check_snapshots(_faults: Faults, client: AgentClient) -> None:
    await checkpoint(client)
    for number, snapshot in enumerate((await client.list_snapshots()).snapshots):
        await client.restore(snapshot.id, f"copy{number}")
        assert await shell(client, f"copy{number}", "cat /kept") == "kept\n"
    assert await shell(client, "box", "cat /kept; echo changed >/kept; cat /kept") == "kept\nchanged\n"


async def box_with_snapshot(faults: Faults, client: AgentClient) -> None:
    await ready_box(faults, client)
    await checkpoint(client)


async def restore(client: AgentClient) -> None:
    (snapshot,) = (await client.list_snapshots()).snapshots
    await client.restore(snapshot.id, "copy")


async def check_restored(_faults: Faults, client: AgentClient) -> None:
    if await state_of(client, "copy") in LIVE:
        assert await shell(client, "copy", "cat /kept") == "kept\n"
        with pytest.raises(ConflictError):
            await restore(client)
    await client.sandbox_remove("copy", force=True)
    await restore(client)
    assert await shell(client, "copy", "cat /kept") == "kept\n"


async def remove(client: AgentClient) -> None:
    await client.sandbox_remove("box", force=True)


async def check_removal(faults: Faults, client: AgentClient) -> None:
    await remove(client)
    assert await state_of(client, "box") == ""
    await create_counting(client)
    await check_counting(faults, client)


async def stop(client: AgentClient) -> None:
    await client.sandbox_stop("box", timeout=10)


async def check_stop(_faults: Faults, client: AgentClient) -> None:
    if await state_of(client, "box") != "failed":
        await stop(client)
        assert await state_of(client, "box") == "stopped"
    await client.sandbox_remove("box")


async def copy_of_snapshot(faults: Faults, client: AgentClient) -> None:
    """And another snapshot, whose layers nobody has."""
    await box_with_snapshot(faults, client)
    await restore(client)
    await checkpoint(client)
    await remove(client)


async def delete_snapshots(client: AgentClient) -> None:
    for snapshot in (await client.list_snapshots()).snapshots:
        await client.delete_snapshot(snapshot.id)


async def check_deletion(_faults: Faults, client: AgentClient) -> None:
    await delete_snapshots(client)
    assert await shell(client, "copy", "cat /kept") == "kept\n"
    snapshot = await client.checkpoint("copy")
    await client.restore(snapshot.snapshot_id, "another")
    assert await shell(client, "another", "cat /kept") == "kept\n"


async def box_with_two_snapshots(_faults: Faults, client: AgentClient) -> None:
    """The next one has more layers than there may be: see MANY_LAYERS in faulty_agent.py."""
    await client.sandbox_create("box", memory_mib=64, wait=True)
    for script in ("mkdir -p /d/e /f; echo 1 > /d/e/x; echo 1 > /d/y", "rm -r /d/e /f; mkdir /f; echo 2 > /f/z"):
        await shell(client, "box", script)
        await checkpoint(client)
    await shell(client, "box", "echo 3 > /d/y; echo kept > /kept")


async def check_flattened(faults: Faults, client: AgentClient) -> None:
    """The last snapshot shows the same, and has few layers in the end."""
    snapshots = (await client.list_snapshots()).snapshots
    for number, shown in enumerate(["/d/e/x 1 /d/y 1", "/d/y 1 /f/z 2", "/d/y 3 /f/z 2"][: len(snapshots)]):
        await client.restore(snapshots[number].id, f"copy{number}")
        files = "find /d /f -type f | sort | while read name; do echo $name $(cat $name); done"
        assert (await shell(client, f"copy{number}", files)).split() == shown.split()
    assert len(snapshots) >= 2
    for snapshot in snapshots:
        file = trio.Path(faults.machine.data_dir, "snapshots", snapshot.id, "snapshot.json")
        with trio.fail_after(20):
            while len(json.loads(await file.read_text())["snapshot"]["spec"]["layers"]) > 2:  # noqa: ASYNC110  as above
                await trio.sleep(0.01)
    await checkpoint(client)


async def varied_boxes(faults: Faults, client: AgentClient) -> None:
    """One that runs its command and has an execution, one that is paused and has a snapshot, and two more."""
    await counting_box(faults, client)
    await start_execution(client)
    for name in ("still", "gone", "lost"):
        await client.sandbox_create(name, memory_mib=64, wait=True)
    await shell(client, "still", "echo kept > /kept")
    await client.checkpoint("still")
    await client.sandbox_pause("still")


async def adopt(faults: Faults, _client: AgentClient) -> None:
    """Have the next agent begin. Meanwhile an init has ended, and a record got lost."""
    await faults.end()
    faults.machine.kill_inits("gone")
    await trio.Path(faults.machine.data_dir, "records", "lost.json").unlink()
    await faults.begin()
    async with faults.connected() as client:
        await client.sandbox_list()


async def check_adopted(faults: Faults, client: AgentClient) -> None:
    states = {box.id: box.state for box in (await client.sandbox_list()).sandboxes}
    assert states.pop("lost", "failed") == "failed"  # for a moment, or because the one that removed it was killed
    assert states == {"box": "running", "still": "paused", "gone": "failed"}
    await check_counting(faults, client)
    completed = await SandboxHandle(client, "box").execution("job").collect()
    assert (completed.exit_code, len(completed.stdout.split())) == (7, 1000)
    await client.sandbox_resume("still")
    await restore(client)
    for name in ("still", "copy"):
        assert await shell(client, name, "cat /kept") == "kept\n"
    addresses = {box.id: box.ip_address for box in (await client.sandbox_list()).sandboxes}
    assert len(set(addresses.values())) == len(addresses)
    for name in ("box", "still", "copy"):
        async with client.sandbox_exec(name, ["ip", "-4", "addr", "show", "eth0"]) as session:
            assert f" {addresses[name]}/" in (await session.collect()).stdout.decode()


async def image_to_pull(faults: Faults, _client: AgentClient) -> None:
    directory = faults.machine.directory
    if not await trio.Path(directory / "layout").exists():
        await trio.to_thread.run_sync(make_image, faults.machine.rootfs, directory)
    for kind in ("refs", "images"):
        await trio.to_thread.run_sync(partial(shutil.rmtree, f"{faults.machine.data_dir}/store/{kind}", True))


async def create_from_image(faults: Faults, client: AgentClient) -> None:
    await client.sandbox_create("box", image=f"oci:{faults.machine.directory}/layout:busybox", memory_mib=64, wait=True)


async def check_pulled(faults: Faults, client: AgentClient) -> None:
    await client.sandbox_remove("box", force=True)
    await create_from_image(faults, client)
    async with client.sandbox_exec("box", ["sh", "-c", "until [ -s said ]; do sleep 0.01; done; cat said"]) as session:
        assert (await session.collect()).stdout == b"hello from /tmp by nobody\n"
    for kind in ("refs", "images"):
        assert len(list(await trio.Path(faults.machine.data_dir, "store", kind).iterdir())) == 1


OPERATIONS: Final = {
    "create": Operation(nothing, of_client(create_counting), check_creation),
    "run": Operation(ready_box, of_client(run), check_run),
    "execution": Operation(ready_box, of_client(start_execution), check_execution),
    "checkpoint": Operation(ready_box, of_client(checkpoint), check_snapshots),
    "flatten": Operation(box_with_two_snapshots, of_client(checkpoint), check_flattened),
    "restore": Operation(box_with_snapshot, of_client(restore), check_restored),
    "stop": Operation(counting_box, of_client(stop), check_stop),
    "remove": Operation(counting_box, of_client(remove), check_removal),
    "delete": Operation(copy_of_snapshot, of_client(delete_snapshots), check_deletion),
    "adopt": Operation(varied_boxes, adopt, check_adopted),
    "pull": Operation(image_to_pull, create_from_image, check_pulled),
}
BY_DEFAULT: Final = ("remove", "adopt", "pull")


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", OPERATIONS if SHARE else BY_DEFAULT)
async def test_an_agent_that_is_killed_at_any_step_leaves_a_consistent_world_to_the_next(
    faults: Faults, name: str
) -> None:
    operation = OPERATIONS[name]
    async with faults.agent() as client:
        await operation.prepare(faults, client)
        async with faults.next_agent() as next_client:
            steps = await faults.steps(partial(operation.request, faults, next_client))
    share = len(steps) if SHARE == "all" else min(int(SHARE or 2), len(steps))
    chosen = [steps[(2 * number + 1) * len(steps) // (2 * share)] for number in range(share)]
    missed = 0
    for step in chosen:
        print(f"{name}: {step}")  # noqa: T201  where it was when it fails
        async with faults.agent() as client:
            await faults.check(client)
            await operation.check(faults, client)
            await faults.clear(client)
            await operation.prepare(faults, client)
            async with faults.next_agent() as next_client:
                if not await faults.killed_at(step, partial(operation.request, faults, next_client)):
                    missed += 1
                    print(f"{name}: not reached")  # noqa: T201  as above
    async with faults.agent() as client:
        await faults.check(client)
        await operation.check(faults, client)
        await faults.clear(client)
    assert missed <= len(chosen) // 2  # what runs at the same time is not always in the same order
    print(f"{name}: {len(chosen)} of {len(steps)} steps, {missed} of which were not reached when repeated")  # noqa: T201  with -s
