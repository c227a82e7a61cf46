"""What executions, watches and streams stand: as much of it as the environment asks for, and with -s in figures."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import Exited, UnavailableError, connect
from tests.sandboxes.relay import relayed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

CUT_MIB = int(os.environ.get("ARCBOX_TEST_CUT_MIB", "8"))
"""Output of an execution whose client is cut off and whose agent is killed; at 1024 the latter takes minutes."""

CUTS, KILLS = (20, 3) if CUT_MIB >= 1024 else (5, 1)

EXECUTIONS = int(os.environ.get("ARCBOX_TEST_EXECUTIONS", "20"))
"""Those that run at the same time, ten in each sandbox."""

CREATIONS = int(os.environ.get("ARCBOX_TEST_CREATIONS", "2000"))
"""Files that are made in a directory that is watched."""

STREAM_SECONDS = int(os.environ.get("ARCBOX_TEST_STREAM_SECONDS", "0"))
"""For how long the cost of the streams of statistics is measured; they send a sample each second."""

PER_SANDBOX = 10


def numbers(size: int) -> int:
    """Up to which number `seq` counts to write at least `size` bytes."""
    count, written, digits = 0, 0, 1
    while written < size:
        block = min(9 * 10 ** (digits - 1), -(-(size - written) // (digits + 1)))
        count, written, digits = count + block, written + block * (digits + 1), digits + 1
    return count


@contextmanager
def counting_to(last: int) -> Iterator[IO[bytes]]:
    """What `seq` writes, ours and not the sandbox's."""
    with subprocess.Popen(["seq", "1", str(last)], stdout=subprocess.PIPE) as process:  # noqa: S603, S607  ours
        assert process.stdout is not None
        yield process.stdout


@pytest.mark.timeout(60 + 2 * CUT_MIB)
async def test_output_is_whole_however_often_the_client_is_cut_off_and_the_agent_killed(machine: Machine) -> None:
    last, size = numbers(CUT_MIB << 20), CUT_MIB << 20
    marks = sorted(
        [
            *(("cut", size * n // (CUTS + 1)) for n in range(1, CUTS + 1)),
            *(("kill", size * n // (KILLS + 1) + 1) for n in range(1, KILLS + 1)),
        ],
        key=lambda mark: mark[1],
    )
    # Only what nobody has read for so long is removed: nobody shall miss anything here.
    machine.settings = f"sandbox.stop_at_exit = false\nsandbox.kept_output_mib = {min(CUT_MIB, 1024)}\n"
    with counting_to(last) as expected, ExitStack() as agents:
        agent = agents.enter_context(machine.running())
        async with relayed(machine.directory / "relay", agent) as relay, connect(relay.address) as client:
            await machine.ready(client, "box", memory_mib=256)
            script = f"seq 1 {last}; exit 7"
            execution = await client.sandbox_handle("box").start(["sh", "-c", script])
            total, began = 0, trio.current_time()
            async with execution.attach() as output:
                async for piece in output:
                    assert piece.offset == total
                    assert piece.data == expected.read(len(piece.data))
                    total += len(piece.data)
                    while marks and total >= marks[0][1]:
                        what, _ = marks.pop(0)
                        if what == "cut":
                            relay.cut()
                        else:
                            assert relay.agent.pid is not None
                            os.kill(relay.agent.pid, signal.SIGKILL)
                            relay.agent = agents.enter_context(machine.running())
            assert expected.read(1) == b""
            assert output.exited == Exited(7, 0, "")
            assert marks == []
            print(  # noqa: T201  -s shows it
                f"\n{total:,} bytes in {trio.current_time() - began:.1f} s, {CUTS} cuts of {relay.cuts} connections,"
                f" {KILLS} agents killed"
            )
            async with connect(relay.agent.address) as again:
                await again.sandbox_remove("box", force=True)
    assert machine.leftovers() == []


@pytest.mark.timeout(60 + EXECUTIONS)
async def test_many_executions_with_two_attached_to_each_cost_the_same_each(
    machine: Machine, client: AgentClient
) -> None:
    sandboxes = [f"box-{number}" for number in range(max(2, EXECUTIONS // PER_SANDBOX))]
    for name in sandboxes:
        await machine.ready(client, name, memory_mib=64)
    seconds: list[float] = []
    resident = [machine.process.memory_info().rss]
    async with AsyncExitStack() as stack:
        executions = []
        for number in range(EXECUTIONS):
            began = trio.current_time()
            execution = await client.sandbox_handle(sandboxes[number % len(sandboxes)]).start(["cat"], stdin=True)
            await execution.write_stdin(b"%d\n" % number)
            attached = [await stack.enter_async_context(execution.attach()) for _ in range(2)]
            for output in attached:
                assert (await anext(output)).data == b"%d\n" % number
            seconds.append(trio.current_time() - began)
            executions.append((execution, attached))
            if number + 1 in (EXECUTIONS // 2, EXECUTIONS):
                resident.append(machine.process.memory_info().rss)
        for execution, attached in executions:
            await execution.close_stdin()
            for output in attached:
                assert [piece async for piece in output] == []
                assert output.exited == Exited(0, 0, "")
    tenth = max(1, EXECUTIONS // 10)
    first, last = (1000 * statistics.median(part) for part in (seconds[:tenth], seconds[-tenth:]))
    halves = [(after - before) / 1024 / (EXECUTIONS / 2) for before, after in pairwise(resident)]
    print(  # noqa: T201  -s shows it
        f"\n{EXECUTIONS} executions in {len(sandboxes)} sandboxes, each attached to twice: the first {first:.1f} ms,"
        f" the last {last:.1f} ms; KiB of the agent for each, in the first half {halves[0]:.0f}, in the second"
        f" {halves[1]:.0f}"
    )
    if EXECUTIONS >= 200:  # less says nothing
        assert halves[1] < 1.2 * halves[0]
        assert last < 2 * first
    for name in sandboxes:
        await client.sandbox_remove(name, force=True)
    assert machine.leftovers() == []


async def test_a_watch_sees_every_file_that_is_made_or_says_that_it_lost_some(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "box")
    box = client.sandbox_handle("box")
    await box.files.mkdir("/srv/deep")
    created: set[str] = set()
    lost = ""
    async with box.files.watch("/srv", recursive=True) as changes, trio.open_nursery() as nursery:
        make = f"cd /srv/deep && seq 1 {CREATIONS} | xargs touch"
        nursery.start_soon(partial(box.run, ["sh", "-c", make]))
        try:
            async for change in changes:
                if change.kind == "created":
                    created.add(change.path)
                if len(created) == CREATIONS:
                    break
        except UnavailableError as error:
            lost = str(error)
    print(f"\n{len(created)} of {CREATIONS} creations seen, lost: {lost or 'none'}")  # noqa: T201  -s shows it
    if lost:
        assert "list it, and watch it again" in lost
    else:
        assert len(created) == CREATIONS
        assert {path.rpartition("/")[2] for path in created} == {str(n) for n in range(1, CREATIONS + 1)}
    await client.sandbox_remove("box", force=True)


@pytest.mark.skipif(STREAM_SECONDS == 0, reason="ARCBOX_TEST_STREAM_SECONDS says for how long")
@pytest.mark.timeout(60 + STREAM_SECONDS)
async def test_streams_of_statistics_and_memory_pressure_cost_less_than_a_hundredth_of_a_processor(
    machine: Machine, client: AgentClient
) -> None:
    process = machine.process
    samples = 0

    def used() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    async def count() -> None:
        nonlocal samples
        async with client.watch_stats(interval=1) as stream:
            async for _ in stream:
                samples += 1

    async def watch_pressure() -> None:
        async with client.watch_memory_pressure() as stream:
            async for _ in stream:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        nursery.start_soon(watch_pressure)
        await trio.sleep(2)
        before, began = used(), trio.current_time()
        await trio.sleep(STREAM_SECONDS)
        share = (used() - before) / (trio.current_time() - began)
        nursery.cancel_scope.cancel()
    print(f"\n{samples} samples: {100 * share:.2f} % of a processor")  # noqa: T201  -s shows it
    assert samples > STREAM_SECONDS / 2
    assert share < 0.01
