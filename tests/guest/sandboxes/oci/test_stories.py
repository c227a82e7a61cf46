"""Whatever happens, in whatever order, to real sandboxes: what is known, told, recorded and really there agree.

`ARCBOX_TEST_STORIES=500` tells more of them than a usual run has time for.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest
import trio
from attrs import Factory, define, evolve, field
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guest.errors import GuestError, UnavailableError
from guest.sandboxes import life, states
from guest.sandboxes.manager import Defaults, SandboxManager
from guest.sandboxes.model import Command, Sandbox, Spec, State, TerminalSize
from guest.sandboxes.oci.driver import OciDriver
from guest.sandboxes.records import Records, read
from tests.guest.sandboxes.oci_world import OciWorld, missing, open_world, processes
from tests.guest.sandboxes.stories import (
    IDS,
    NEEDS,
    Client,
    Happening,
    Listener,
    cancellations,
    checkpoints,
    removals,
    stops,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guest.sandboxes.driver import Process

STORIES: Final = int(os.environ.get("ARCBOX_TEST_STORIES", "12"))

_PATIENCE: Final = 30.0
"""Seconds in which all that was begun must have come to its end."""


@define(eq=False)
class Story:
    """An agent with its driver, disk and peers, while all sorts of things happen."""

    world: OciWorld
    nursery: trio.Nursery
    clients: list[Client] = Factory(list)
    listener: Listener = field(init=False)
    manager: SandboxManager = field(init=False)
    _agent: trio.CancelScope = field(init=False)
    _gone: trio.Event = field(init=False)

    @property
    def records(self) -> Records:
        return Records(self.world.driver.data_dir / "records")

    def start(self, listener: Listener) -> None:
        self.listener = listener
        defaults = Defaults(rootfs=self.world.rootfs, memory_mib=32)
        self.manager = SandboxManager(self.world.driver, self.records, listener, defaults)
        self._agent, self._gone = trio.CancelScope(), trio.Event()
        self.nursery.start_soon(self._run, self.manager, self._agent, self._gone)

    async def _run(self, manager: SandboxManager, scope: trio.CancelScope, gone: trio.Event) -> None:
        with scope:
            await manager.run()
        gone.set()

    async def end_agent(self) -> None:
        self._agent.cancel()
        await self._gone.wait()

    async def restart(self) -> None:
        """Another agent, which knows what is on the disk and no more."""
        await self.end_agent()
        driver = self.world.driver
        self.world.driver = OciDriver(driver.data_dir, driver.runtime)
        known = {sandbox.id: str(sandbox.state) for sandbox in await self.records.load()}
        self.start(Listener(states=dict.fromkeys(await self.world.driver.existing(), "failed") | known))

    def ask(self, sandbox_id: str, request: Callable[[Client], Awaitable[object]], *, lasts: bool = False) -> None:
        """Begin a request. Refusals are part of the story; other exceptions end it."""
        client = Client(sandbox_id, lasts)
        self.clients.append(client)
        self.nursery.start_soon(self._ask, client, request)

    async def _ask(self, client: Client, request: Callable[[Client], Awaitable[object]]) -> None:
        with client.scope, suppress(GuestError):
            await request(client)
        client.over = True

    async def run_process(self, client: Client, command: Command, needs: frozenset[State]) -> None:
        async with self.manager.process(client.sandbox_id, command, needs=needs) as process:
            client.runs = True
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_drain, process)
                    await process.wait()
                    nursery.cancel_scope.cancel()
            finally:
                client.runs = False

    def kill_init(self, sandbox_id: str) -> None:
        if sandbox_id in self.world.driver._live:
            with suppress(ProcessLookupError):
                self.world.kill_init(sandbox_id)

    def known(self) -> dict[str, Sandbox]:
        return {sandbox.id: sandbox for sandbox in self.manager.list()}

    async def come_to_rest(self) -> None:
        """Wait until nothing is under way, and everybody agrees."""
        complaints = await self._complaints()
        deadline = trio.current_time() + _PATIENCE
        while complaints and trio.current_time() < deadline:
            await trio.sleep(0.01)  # what happens in the kernel, on the disk and in threads is told to nobody
            complaints = await self._complaints()
        assert complaints == []

    async def _complaints(self) -> list[str]:
        try:
            known = self.known()
        except UnavailableError:
            return ["the records are not read yet"]
        told = self.listener.believed()
        found = [f"{name} is {known[name].state if name in known else 'gone'}, and was told to be {told.get(name)}"
                 for name in known.keys() | told.keys()
                 if name not in known or told.get(name) != known[name].state]  # fmt: skip
        found += [f"{name} is {sandbox.state}" for name, sandbox in known.items() if sandbox.state in _ON_THE_WAY]
        recorded = self._recorded()
        found += [
            f"{known[name]} is recorded as {recorded.get(name)}" for name in known if recorded.get(name) != known[name]
        ]
        found += [f"there is a record of {name}" for name in recorded.keys() - known.keys()]
        found += [f"somebody waits for {client.sandbox_id}" for client in self.clients if not _settled(client)]
        for name in await self.world.driver.existing():
            if name not in known:
                found.append(f"there is something of {name}")
            elif known[name].state not in states.LIVE and self._processes(name):
                found.append(f"{name} is {known[name].state}, and {self._processes(name)} run in it")
        for name, sandbox in known.items():
            if sandbox.state in states.READY_OR_RUNNING:
                found += self._complaints_about(name, sandbox)
        return [*found, *self.world.mounts()]

    def _complaints_about(self, name: str, sandbox: Sandbox) -> list[str]:
        inside = self._processes(name)
        if self.world.driver._live[name].init not in inside:
            return [f"{name} is {sandbox.state}, and has no init"]
        running = [client for client in self.clients if client.runs and client.sandbox_id == name]
        lasts = bool(running) or sandbox.spec.cmd[:1] == ("sleep",)
        if lasts != (sandbox.state is State.RUNNING):
            return [f"{name} is {sandbox.state}, and {len(running)} run"]
        return [f"{name} runs nothing really"] if lasts and len(inside) < 2 else []

    def _recorded(self) -> dict[str, Sandbox]:
        paths = list(
            self.world.driver.data_dir.glob("records/[!.]*.json")
        )  # `load` would clear away what is being written
        return {path.stem: read(path) for path in paths}

    def _processes(self, name: str) -> set[int]:
        return {pid for group in self.world.cgroups() for pid in processes(group / name)}

    async def end(self) -> None:
        """Everybody goes away, all is removed: nothing is left."""
        for client in self.clients:
            client.scope.cancel()
        await self.come_to_rest()
        for sandbox_id in self.known():
            await self.manager.remove(sandbox_id, force=True)
        await self.come_to_rest()
        assert list(self.world.driver.data_dir.glob("records/*")) == []
        await self.end_agent()
        assert self.world.leftovers() == []


_ON_THE_WAY: Final = (State.STARTING, State.STOPPING)


def _settled(client: Client) -> bool:
    return client.over or (client.runs and client.lasts)


async def _drain(process: Process) -> None:
    while await process.stdout.receive():
        pass


LASTING: Final = (
    ("sleep", "1000"),
    ("sh", "-c", "trap '' TERM; while :; do sleep 1000; done"),
    ("sh", "-c", "setsid sleep 1000 & sleep 999"),
)
SHORT: Final = (
    ("true",),
    ("sh", "-c", "exit 7"),
    ("sh", "-c", "kill -9 $$"),
    ("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo left"),
    ("not-there",),
)
INITIAL = st.sampled_from([(), (), ("sleep", "999"), ("sh", "-c", "echo said; exit 3"), ("not-there",)])


@st.composite
def creations(draw: st.DrawFn) -> Happening[Story]:
    rootfs = draw(st.sampled_from(["", "", "", "/nowhere"]))
    spec = Spec(id=draw(IDS), rootfs=rootfs, cmd=draw(INITIAL), ttl=draw(st.sampled_from([0.0, 0.0, 0.0, 0.1])))
    return Happening(f"create {spec}", lambda story: story.ask(spec.id, lambda _: story.manager.create(spec)))


@st.composite
def runs(draw: st.DrawFn) -> Happening[Story]:
    sandbox_id, needs, argv = draw(IDS), draw(NEEDS), draw(st.sampled_from(LASTING + SHORT))
    command = Command(argv=argv, timeout=draw(st.sampled_from([0.0, 0.0, 0.05])))
    command = evolve(command, terminal=draw(st.sampled_from([None, None, TerminalSize()])))
    lasts = argv in LASTING and not command.timeout
    return Happening(
        f"run {command} in {sandbox_id}, {sorted(needs)}",
        lambda story: story.ask(sandbox_id, lambda client: story.run_process(client, command, needs), lasts=lasts),
    )


async def milliseconds(count: int) -> None:
    await trio.sleep(count / 1000)


DEATHS = IDS.map(lambda name: Happening[Story](f"the init of {name} is killed", lambda story: story.kill_init(name)))
RESTARTS = st.just(Happening[Story]("the agent is ended and started", lambda story: story.restart()))
PAUSES = st.one_of(
    st.integers(0, 7).map(lambda count: Happening[Story](f"{count} checkpoints", lambda _: checkpoints(count))),
    st.sampled_from([2, 10, 40]).map(lambda ms: Happening[Story](f"{ms} ms", lambda _: milliseconds(ms))),
    st.just(Happening[Story]("all settles", lambda story: story.come_to_rest())),
)
HAPPENINGS = st.one_of(
    creations(), creations(), runs(), runs(), runs(), stops([0.0, 0.1, 0.3]), removals(), cancellations(), DEATHS,
    PAUSES, PAUSES, PAUSES, RESTARTS,
)  # fmt: skip


async def tell(happenings: list[Happening[Story]], directory: Path) -> None:
    async with open_world("crun", directory) as world, trio.open_nursery() as nursery:
        story = Story(world, nursery)
        story.start(Listener())
        for happening in happenings:
            waiting = happening.step(story)
            if waiting is not None:
                await waiting
        await story.come_to_rest()
        await story.end()


@pytest.mark.skipif(bool(missing("crun")), reason=missing("crun"))
@pytest.mark.timeout(60 + 5 * STORIES)
@settings(
    deadline=None,
    max_examples=STORIES,
    phases=[Phase.explicit, Phase.generate],  # to tell a story again and again, shorter each time, takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(happenings=st.lists(HAPPENINGS, min_size=4, max_size=25))
def test_any_story_of_real_sandboxes_leaves_nothing_behind(
    happenings: list[Happening[Story]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_BETWEEN_RECORDS", 0.02)
    gc.collect()
    me = psutil.Process()
    descriptors, children = me.num_fds(), me.children()
    logging.disable()
    try:
        with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
            trio.run(tell, happenings, Path(directory))
    finally:
        logging.disable(logging.NOTSET)
    gc.collect()
    assert me.children() == children
    assert me.num_fds() == descriptors
