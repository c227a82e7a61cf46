"""Many sandboxes at once, and many one after the other: what an agent has afterwards is what it had before."""

from __future__ import annotations

import os
import statistics
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import frozen

if TYPE_CHECKING:
    from arcbox_client import AgentClient, SandboxOptions
    from tests.sandboxes.conftest import Machine

CYCLES = int(os.environ.get("ARCBOX_TEST_CYCLES", "40"))
"""Of create, run and remove; 2,000 show what a day shows."""

AT_ONCE = int(os.environ.get("ARCBOX_TEST_SANDBOXES", "30"))
"""Sandboxes that live at the same time; 200 take some seconds."""

HUNDRED = 100
SMALL: SandboxOptions = {"memory_mib": 16}


@frozen
class Belongings:
    """What an agent has, and what there is of its sandboxes on the machine."""

    fds: int
    children: int
    network_namespaces: int
    cgroups: int
    mounts: int
    files: int

    @classmethod
    def of(cls, machine: Machine) -> Belongings:
        return cls(
            fds=machine.process.num_fds(),
            children=len(machine.process.children(recursive=True)),
            network_namespaces=len(network_namespaces(machine)),
            cgroups=len(machine.cgroups()),
            mounts=len(machine.mounts()) + machine.mounts_of_driver(),
            files=len(machine.files()),
        )


def network_namespaces(machine: Machine) -> set[int]:
    """Those of processes in the agent's sandboxes."""
    found: set[int] = set()
    for cgroup in machine.cgroups():
        for procs in cgroup.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                with suppress(FileNotFoundError):  # a client of the runtime that has just ended
                    found.add(Path(f"/proc/{pid}/ns/net").stat().st_ino)
    return found


@pytest.mark.timeout(60 + AT_ONCE)
async def test_many_live_at_the_same_time_and_leave_nothing(machine: Machine, client: AgentClient) -> None:
    async def live(number: int) -> None:
        name = await machine.ready(client, f"box-{number}", **SMALL)
        async with client.sandbox_run(name, ["true"]) as session:
            assert await session.wait() == 0
        alive.append(name)
        if len(alive) == AT_ONCE:
            all_alive.set()
        await counted.wait()
        await client.sandbox_remove(name)

    await live_once(machine, client)
    before, began = Belongings.of(machine), trio.current_time()
    alive: list[str] = []
    all_alive, counted = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(AT_ONCE):
            nursery.start_soon(live, number)
        await all_alive.wait()
        most = Belongings.of(machine)
        counted.set()
    after = Belongings.of(machine)
    print(f"\n{AT_ONCE} at once, {trio.current_time() - began:.1f} s: {before}, {most}, {after}")  # noqa: T201  -s shows it
    assert list((await client.sandbox_list()).sandboxes) == []
    assert machine.leftovers() == []
    assert after == before


@pytest.mark.timeout(60 + CYCLES)
async def test_cycles_leave_no_file_thread_or_memory(machine: Machine, client: AgentClient) -> None:
    seconds: list[float] = []
    before, memory = Belongings.of(machine), 0
    began = trio.current_time()
    for number in range(CYCLES):
        started = trio.current_time()
        await live_once(machine, client)
        seconds.append(trio.current_time() - started)
        if number == CYCLES // 2:
            before, memory = Belongings.of(machine), machine.process.memory_info().rss
    after, grown = Belongings.of(machine), machine.process.memory_info().rss - memory
    first, last = (1000 * statistics.median(part) for part in (seconds[:HUNDRED], seconds[-HUNDRED:]))
    print(  # noqa: T201  -s shows it
        f"\n{CYCLES} cycles, {trio.current_time() - began:.1f} s: the first {first:.1f} ms, the last {last:.1f} ms,"
        f" from the middle on {grown / 1024:.0f} KiB more of {memory / 1024:.0f}: {before}, {after}"
    )
    assert after == before
    assert machine.process.num_threads() < 40
    assert grown < 4 * 2**20
    assert machine.leftovers() == []


async def live_once(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box", **SMALL)
    async with client.sandbox_run("box", ["true"]) as session:
        assert await session.wait() == 0
    await client.sandbox_remove("box")
