"""Whatever happens, in whatever order: states, events, records and the driver's world agree in the end."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from guest.errors import GuestError, UnavailableError
from guest.sandboxes import states
from guest.sandboxes.manager import Defaults, SandboxManager
from guest.sandboxes.model import Command, Sandbox, Spec, State
from guest.sandboxes.records import Records
from guest.sandboxes.testing import ROOTFS, FakeDriver
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
    from collections.abc import Awaitable, Callable, Mapping

EPOCH_NS: Final = 1_767_225_600_000_000_000


class DriverBug(Exception):  # noqa: N818  not an error that anybody would expect
    """What no driver should raise."""


async def inline(function: Callable[..., object], *args: object) -> None:
    await trio.lowlevel.checkpoint()
    function(*args)
    await trio.lowlevel.checkpoint()


@define(eq=False)
class Story:
    """An agent with its driver, disk and peers, while all sorts of things happen."""

    records: Records
    nursery: trio.Nursery
    driver: FakeDriver = Factory(FakeDriver)
    clients: list[Client] = Factory(list)
    hangs: list[trio.Event] = Factory(list)
    listener: Listener = field(init=False)
    manager: SandboxManager = field(init=False)
    agent: trio.CancelScope = field(init=False)

    def start(self, listener: Listener) -> None:
        self.listener = listener
        now_ns = lambda: EPOCH_NS + round(trio.current_time() * 1e9)  # noqa: E731  two lines of nothing otherwise
        self.manager = SandboxManager(self.driver, self.records, listener, Defaults(rootfs=ROOTFS), now_ns)
        self.agent = trio.CancelScope()
        self.nursery.start_soon(self._run, self.manager, self.agent)

    async def _run(self, manager: SandboxManager, scope: trio.CancelScope) -> None:
        with scope:
            await manager.run()

    async def restart(self) -> None:
        """Kill the agent and start another, which knows what is on the disk and no more."""
        self.agent.cancel()
        await wait_all_tasks_blocked()
        known = {sandbox.id: str(sandbox.state) for sandbox in await self.records.load()}
        # What the driver has beyond that is in the worst state that there is, until it is removed.
        self.start(Listener(states=dict.fromkeys(self.driver.sandboxes, "failed") | known))

    def ask(self, sandbox_id: str, request: Callable[[Client], Awaitable[object]]) -> None:
        """Begin a request. Refusals are part of the story; other exceptions end it."""
        client = Client(sandbox_id)
        self.clients.append(client)
        self.nursery.start_soon(self._ask, client, request)

    async def _ask(self, client: Client, request: Callable[[Client], Awaitable[object]]) -> None:
        with client.scope, suppress(GuestError, DriverBug):
            await request(client)
        client.over = True

    async def run_process(self, client: Client, command: Command, needs: frozenset[State]) -> None:
        async with self.manager.process(client.sandbox_id, command, needs=needs) as process:
            client.runs = True
            try:
                await process.wait()
            finally:
                client.runs = False

    def known(self) -> dict[str, Sandbox]:
        try:
            return {sandbox.id: sandbox for sandbox in self.manager.list()}
        except UnavailableError:  # it reads its records just now
            return {}

    def check(self) -> None:
        """What holds at every moment."""
        for sandbox_id, sandbox in self.known().items():
            assert self.listener.states.get(sandbox_id) in (sandbox.state, None if sandbox.error else sandbox.state)
            assert (sandbox.error != "") == (sandbox.state is State.FAILED)

    async def come_to_rest(self) -> None:
        """Let the driver do its work, and all that was begun come to its end."""
        self.heal()
        await trio.sleep(1000)
        await wait_all_tasks_blocked()

    async def check_at_rest(self) -> None:
        """What holds when nothing is under way."""
        known = self.known()
        assert {sandbox_id: str(sandbox.state) for sandbox_id, sandbox in known.items()} == self.listener.believed()
        assert {sandbox.id: sandbox for sandbox in await self.records.load()} == known
        assert not {sandbox.state for sandbox in known.values()} & {State.STARTING, State.STOPPING}
        up = {sandbox_id for sandbox_id, sandbox in self.driver.sandboxes.items() if sandbox.up}
        live = {sandbox.id for sandbox in known.values() if sandbox.state in states.LIVE}
        assert live <= up
        assert all(known[sandbox_id].state is State.FAILED for sandbox_id in up - live)  # what could not be ended
        assert self.driver.sandboxes.keys() <= known.keys()
        assert all(client.over or client.runs for client in self.clients)
        self._check_processes(known)

    def _check_processes(self, known: Mapping[str, Sandbox]) -> None:
        running = Counter(client.sandbox_id for client in self.clients if client.runs)
        for sandbox_id, sandbox in self.driver.sandboxes.items():
            mains = [process for process in sandbox.processes if process.exit_code is None]
            initial = sum(process.command.argv == known[sandbox_id].spec.cmd for process in mains)
            assert len(mains) - initial == running[sandbox_id]
            if known[sandbox_id].state in states.LIVE:
                assert (known[sandbox_id].state is State.RUNNING) == bool(mains)

    def set_fault(self, method: str, fault: Exception | trio.Event) -> None:
        """Have a method of the driver fail or hang. What hangs already goes on doing so."""
        self.driver.faults[method] = fault
        if isinstance(fault, trio.Event):
            self.hangs.append(fault)

    def heal(self) -> None:
        """Let the driver fail and hang no more."""
        self.driver.faults.clear()
        for hang in self.hangs:
            hang.set()

    async def end(self) -> None:
        """Everybody goes away, all is removed: nothing is left."""
        for client in self.clients:
            client.scope.cancel()
        await self.come_to_rest()
        assert all(client.over for client in self.clients)
        assert State.RUNNING not in {s.state for s in self.known().values() if not s.spec.cmd}
        for sandbox_id in self.known():
            await self.manager.remove(sandbox_id, force=True)
        await self.check_at_rest()
        assert self.driver.sandboxes == {}
        assert await self.records.load() == []
        self.agent.cancel()


ARGVS = st.sampled_from(
    [
        ("true",),
        ("sleep", "1000"),
        ("sh", "-c", "exit 7"),
        ("sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 1000; done"),
        ("sh", "-c", "sleep 1000 & echo left; exit 3"),
    ]
)
INITIAL = st.sampled_from([(), (), ("cat",), ("sleep", "999")])
METHODS = st.sampled_from(["create", "process", "terminate", "idle", "ended", "stop", "destroy"])
FAULTS: Final[Mapping[str, Callable[[], Exception | trio.Event]]] = {
    "hangs": trio.Event,
    "refuses": lambda: GuestError("no"),
    "has a bug": DriverBug,
}


@st.composite
def creations(draw: st.DrawFn) -> Happening[Story]:
    rootfs = draw(st.sampled_from(["", "", "", "/nowhere"]))
    spec = Spec(id=draw(IDS), rootfs=rootfs, cmd=draw(INITIAL), ttl=draw(st.sampled_from([0.0, 0.0, 3.0, 300.0])))
    return Happening(f"create {spec}", lambda story: story.ask(spec.id, lambda _: story.manager.create(spec)))


@st.composite
def processes(draw: st.DrawFn) -> Happening[Story]:
    sandbox_id, needs = draw(IDS), draw(NEEDS)
    command = Command(argv=draw(ARGVS), timeout=draw(st.sampled_from([0.0, 0.0, 2.0])))
    command = evolve(command, user=draw(st.sampled_from(["", "", "", "nemo"])))
    return Happening(
        f"run {command} in {sandbox_id}, {sorted(needs)}",
        lambda story: story.ask(sandbox_id, lambda client: story.run_process(client, command, needs)),
    )


@st.composite
def exits(draw: st.DrawFn) -> Happening[Story]:
    sandbox_id, code = draw(IDS), draw(st.integers(0, 255))

    def step(story: Story) -> None:
        sandbox = story.driver.sandboxes.get(sandbox_id)
        if sandbox is not None and sandbox.processes:
            sandbox.processes[0].exit(code)

    return Happening(f"a process of {sandbox_id} exits with {code}", step)


@st.composite
def deaths(draw: st.DrawFn) -> Happening[Story]:
    sandbox_id = draw(IDS)

    def step(story: Story) -> None:
        if sandbox_id in story.driver.sandboxes:
            story.driver.sandboxes[sandbox_id].lose_init("its init was killed")

    return Happening(f"the init of {sandbox_id} dies", step)


@st.composite
def faults(draw: st.DrawFn) -> Happening[Story]:
    method, fault = draw(METHODS), draw(st.sampled_from(sorted(FAULTS)))
    return Happening(f"{method} {fault}", lambda story: story.set_fault(method, FAULTS[fault]()))


async def seconds(count: float) -> None:
    await trio.sleep(count)


PAUSES = st.one_of(
    st.integers(0, 7).map(lambda count: Happening[Story](f"{count} checkpoints", lambda _: checkpoints(count))),
    st.just(Happening[Story]("all settles", lambda _: wait_all_tasks_blocked())),
    st.sampled_from([0.5, 4.0, 70.0]).map(lambda s: Happening[Story](f"{s} seconds", lambda _: seconds(s))),
)
HEALINGS = st.just(Happening[Story]("the driver is well again", lambda story: story.heal()))
RESTARTS = st.just(Happening[Story]("the agent is killed and started", lambda story: story.restart()))
HAPPENINGS = st.one_of(
    creations(), creations(), processes(), processes(), stops([0.0, 1.0, 5.0, 100.0]), removals(), exits(),
    deaths(), faults(), cancellations(), PAUSES, PAUSES, HEALINGS, RESTARTS,
)  # fmt: skip


async def tell(happenings: list[Happening[Story]], directory: Path) -> None:
    async with trio.open_nursery() as nursery:
        story = Story(Records(directory, run_sync=inline), nursery)
        story.start(Listener())
        for happening in happenings:
            waiting = happening.step(story)
            if waiting is not None:
                await waiting
            story.check()
        await story.come_to_rest()
        await story.check_at_rest()
        await story.end()


@settings(deadline=None, max_examples=300)
@given(happenings=st.lists(HAPPENINGS, min_size=4, max_size=40))
def test_any_story_ends_with_everything_in_its_place(happenings: list[Happening[Story]]) -> None:
    directory = Path(tempfile.mkdtemp())
    logging.disable()
    try:
        trio.run(tell, happenings, directory, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(directory)
