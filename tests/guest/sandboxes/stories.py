"""What can happen to sandboxes, as stories to be told of any driver: what must hold meanwhile, and what at rest.

A test of a driver makes a `Story` of its own, which knows what there is of a sandbox besides the manager's word for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import Factory, define, field, frozen
from hypothesis import strategies as st

from arcbox_guest.errors import GuestError, NotFoundError, UnavailableError
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.model import Action, ExecSpec, Sandbox, Spec, State
from arcbox_guest.sandboxes.records import read

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.manager import SandboxManager
    from arcbox_guest.sandboxes.records import Records

LEADS: Final[Mapping[tuple[str, str], str]] = {
    ("", "created"): "starting",
    ("starting", "ready"): "ready",
    ("starting", "failed"): "failed",
    ("starting", "stopping"): "stopping",
    ("ready", "running"): "running",
    ("ready", "failed"): "failed",
    ("ready", "stopping"): "stopping",
    ("running", "idle"): "ready",
    ("running", "failed"): "failed",
    ("running", "stopping"): "stopping",
    ("stopping", "stopped"): "stopped",
    ("stopping", "failed"): "failed",
    ("stopping", "removed"): "",
    ("stopped", "removed"): "",
    ("failed", "removed"): "",
}
"""The states as who only hears of events infers them; what is not here must not happen."""


class DriverBug(Exception):  # noqa: N818  not an error that anybody would expect
    """What no driver should raise."""


@define(eq=False)
class Listener(EventHub):
    """Follows the events of all sandboxes, and stumbles over the first that can't be."""

    states: dict[str, str] = Factory(dict)

    def publish(self, sandbox_id: str, action: Action, attributes: Mapping[str, str] | None = None) -> None:
        self.states[sandbox_id] = LEADS[self.states.get(sandbox_id, ""), action]
        always = {Action.IDLE: {"exit_code"}, Action.FAILED: {"error"}}.get(action, set())
        why = {Action.IDLE: {"reason", "error"}, Action.STOPPING: {"reason"}, Action.REMOVED: {"reason"}}
        assert always <= set(attributes or {}) <= always | why.get(action, set())
        super().publish(sandbox_id, action, attributes)


@define(eq=False)
class Client:
    """One request of one peer, which may go away."""

    sandbox_id: str
    runs: bool = False
    """Whether it has something running in a sandbox."""

    ended: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)

    @property
    def over(self) -> bool:
        return self.ended.is_set()


@define(eq=False)
class Story:
    """An agent with its disk and peers, while all sorts of things happen."""

    records: Records
    nursery: trio.Nursery
    clients: list[Client] = field(init=False, factory=list)
    listener: Listener = field(init=False)
    manager: SandboxManager = field(init=False)
    agent: trio.CancelScope = field(init=False)
    ended: trio.Event = field(init=False)
    """Set when the agent has."""

    def make_manager(self, listener: Listener) -> SandboxManager:
        """A new agent's."""
        raise NotImplementedError

    def start(self, listener: Listener) -> None:
        self.listener = listener
        self.manager = self.make_manager(listener)
        self._begin()

    def _begin(self) -> None:
        self.agent, self.ended = trio.CancelScope(), trio.Event()
        self.nursery.start_soon(self._run, self.agent, self.ended)

    async def _run(self, scope: trio.CancelScope, ended: trio.Event) -> None:
        with scope:
            await self.manager.run()
        ended.set()

    async def restart(self) -> None:
        """Kill the agent and start another, which knows what is on the disk and no more."""
        await self._end()
        self.start(Listener(states=await self._left()))

    async def resume(self) -> None:
        """Have the manager end, as if by a bug, and begin again; its peers, and who hears of events, stay."""
        await self._end()
        self.listener.states = await self._left()
        self._begin()

    async def _end(self) -> None:
        self.agent.cancel()
        await self.ended.wait()

    async def _left(self) -> dict[str, str]:
        """The states of what there is for the next to begin."""
        known = {sandbox_id: str(sandbox.state) for sandbox_id, sandbox in self.recorded().items()}
        # What the driver has beyond that is in the worst state that there is, until it is removed.
        return dict.fromkeys(await self.existing(), "failed") | known

    async def existing(self) -> list[str]:
        """The ids of all that the driver has."""
        raise NotImplementedError

    def ask(self, sandbox_id: str, request: Callable[[Client], Awaitable[object]]) -> None:
        """Begin a request. Refusals are part of the story; other exceptions end it."""
        client = Client(sandbox_id)
        self.clients.append(client)
        self.nursery.start_soon(self._ask, client, request)

    async def _ask(self, client: Client, request: Callable[[Client], Awaitable[object]]) -> None:
        with client.scope, suppress(GuestError, DriverBug):
            await request(client)
        client.ended.set()

    async def run_process(self, client: Client, command: ExecSpec, needs: frozenset[State]) -> None:
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

    def recorded(self) -> dict[str, Sandbox]:
        """What is on the disk. To load it would clear away what is just being written."""
        recorded = {}
        for path in self.records._directory.glob("*.json"):
            with suppress(FileNotFoundError):
                recorded[path.stem] = read(path)
        return recorded

    def check(self) -> None:
        """What holds at every moment."""
        for sandbox_id, sandbox in self.known().items():
            assert self.listener.states.get(sandbox_id) in (sandbox.state, None if sandbox.error else sandbox.state)
            assert (sandbox.error != "") == (sandbox.state is State.FAILED)

    def kill_init(self, sandbox_id: str) -> None:
        """Kill a sandbox's init, if there is one."""
        raise NotImplementedError

    async def come_to_rest(self) -> None:
        """Let all that was begun come to its end, and find everything in its place."""
        raise NotImplementedError

    async def check_at_rest(self) -> None:
        """What holds when nothing is under way."""
        assert all(client.over or client.runs for client in self.clients)
        known = self.known()
        there = {sandbox_id: state for sandbox_id, state in self.listener.states.items() if state}
        assert {sandbox_id: str(sandbox.state) for sandbox_id, sandbox in known.items()} == there
        assert self.recorded() == known
        assert not {sandbox.state for sandbox in known.values()} & {State.STARTING, State.STOPPING}
        await self.check_driver(known)
        assert self.known() == known

    async def check_driver(self, known: Mapping[str, Sandbox]) -> None:
        """What the driver has at rest, of the sandboxes that the manager knows, and of no others."""
        raise NotImplementedError

    async def end(self) -> None:
        """Everybody goes away, all is removed: nothing is left."""
        for client in self.clients:
            client.scope.cancel()
        await self.come_to_rest()
        for client in self.clients:
            await client.ended.wait()
        assert State.RUNNING not in {s.state for s in self.known().values() if not s.spec.cmd}
        for sandbox_id in self.known():
            # Gone meanwhile, if its time was up.
            with suppress(NotFoundError):
                await self.manager.remove(sandbox_id, force=True)
        await self.come_to_rest()
        assert self.known() == {}
        await self._end()


Step = Callable[[Any], Awaitable[object] | None]
"""Of the story of whichever test; what has to be waited for is waited for."""


@frozen
class Happening:
    """A step of a story, with a name for people."""

    name: str
    step: Step = field(repr=False)


Happenings = list[Happening]


async def tell(story: Story, happenings: Happenings) -> None:
    """A story from its beginning to its end."""
    story.start(Listener())
    for happening in happenings:
        waiting = happening.step(story)
        if waiting is not None:
            await waiting
        story.check()
    await story.come_to_rest()
    await story.end()


def creation(spec: Spec) -> Happening:
    return Happening(f"create {spec}", lambda story: story.ask(spec.id, lambda _: story.manager.create(spec)))


def process(sandbox_id: str, command: ExecSpec, needs: frozenset[State]) -> Happening:
    return Happening(
        f"run {command} in {sandbox_id}, {sorted(needs)}",
        lambda story: story.ask(sandbox_id, lambda client: story.run_process(client, command, needs)),
    )


def stop(sandbox_id: str, grace: float) -> Happening:
    return Happening(
        f"stop {sandbox_id} in {grace}",
        lambda story: story.ask(sandbox_id, lambda _: story.manager.stop(sandbox_id, grace)),
    )


def removal(sandbox_id: str, force: bool) -> Happening:  # noqa: FBT001  drawn, not called
    return Happening(
        f"remove {sandbox_id}, force={force}",
        lambda story: story.ask(sandbox_id, lambda _: story.manager.remove(sandbox_id, force=force)),
    )


def cancellation(number: int) -> Happening:
    def step(story: Story) -> None:
        waiting = [client for client in story.clients if not client.over]
        if waiting:
            waiting[number % len(waiting)].scope.cancel()

    return Happening(f"peer {number} goes away", step)


def death(sandbox_id: str) -> Happening:
    return Happening(f"the init of {sandbox_id} is killed", lambda story: story.kill_init(sandbox_id))


RESUMPTIONS: Final = st.just(Happening("the manager ends and begins again", lambda story: story.resume()))


def pause(count: int) -> Happening:
    async def step(story: Story) -> None:
        for _ in range(count):
            await trio.lowlevel.checkpoint()

    return Happening(f"{count} checkpoints", step)


def wait(seconds: float) -> Happening:
    async def step(_: Story) -> None:
        await trio.sleep(seconds)

    return Happening(f"{seconds} seconds", step)


IDS: Final = st.sampled_from(["a", "b"])
NEEDS: Final = st.sampled_from([states.READY, states.READY_OR_RUNNING])
REMOVALS: Final = st.builds(removal, IDS, st.booleans())
INIT_DEATHS: Final = IDS.map(death)
CANCELLATIONS: Final = st.integers(0, 9).map(cancellation)
ARGVS: Final = (
    ("true",),
    ("sleep", "1000"),
    ("sh", "-c", "exit 7"),
    ("sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 1000; done"),
    ("sh", "-c", "sleep 1000 & echo left; exit 3"),
)
"""What both the programs in memory and real ones do."""


def mixtures(kinds: Sequence[tuple[int, st.SearchStrategy[Happening]]], longest: int) -> st.SearchStrategy[Happenings]:
    """Stories of what may happen, each kind as often as its number says.

    Neither `one_of`, which tells strategies that are the same from each other once only, nor `lists` with its taste
    for short ones, would have much of it happen in one story.
    """
    each = st.sampled_from([kind for often, kind in kinds for _ in range(often)]).flatmap(lambda kind: kind)
    return st.integers(4, longest).flatmap(lambda length: st.lists(each, min_size=length, max_size=length))
