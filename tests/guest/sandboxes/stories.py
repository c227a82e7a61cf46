"""What stories of sandboxes have in common, whether they are told of a driver in memory or of a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import trio
from attrs import Factory, define, field, frozen
from hypothesis import strategies as st

from guest.sandboxes import states
from guest.sandboxes.events import EventHub
from guest.sandboxes.model import Action

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from guest.sandboxes.manager import SandboxManager

StoryT = TypeVar("StoryT")

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


@define(eq=False)
class Listener(EventHub):
    """Follows the events of all sandboxes, and stumbles over the first that can't be."""

    states: dict[str, str] = Factory(dict)

    def publish(self, sandbox_id: str, action: Action, attributes: Mapping[str, str] | None = None) -> None:
        self.states[sandbox_id] = LEADS[self.states.get(sandbox_id, ""), action]
        assert set(attributes or {}) == {Action.IDLE: {"exit_code"}, Action.FAILED: {"error"}}.get(action, set())
        super().publish(sandbox_id, action, attributes)

    def believed(self) -> dict[str, str]:
        """The states of the sandboxes that are not gone."""
        return {sandbox_id: state for sandbox_id, state in self.states.items() if state}


class Teller(Protocol):
    """Of a story: who has the agent in which all sorts of things happen."""

    manager: SandboxManager
    clients: list[Client]

    def ask(self, sandbox_id: str, request: Callable[[Client], Awaitable[object]]) -> None:
        """Begin a request. Refusals are part of the story."""


@define(eq=False)
class Client:
    """One request of one peer, which may go away."""

    sandbox_id: str
    lasts: bool = False
    """Whether what it runs does not end by itself."""

    runs: bool = False
    """Whether it has something running in a sandbox."""

    over: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@frozen
class Happening(Generic[StoryT]):
    """A step of a story, with a name for people."""

    name: str
    step: Callable[[StoryT], Awaitable[object] | None] = field(repr=False)


IDS: Final = st.sampled_from(["a", "b"])
NEEDS: Final = st.sampled_from([states.READY, states.READY_OR_RUNNING])


@st.composite
def stops(draw: st.DrawFn, graces: Sequence[float]) -> Happening[Teller]:
    """Somebody wants a sandbox stopped."""
    sandbox_id, grace = draw(IDS), draw(st.sampled_from(graces))
    return Happening(
        f"stop {sandbox_id} in {grace}",
        lambda story: story.ask(sandbox_id, lambda _: story.manager.stop(sandbox_id, grace)),
    )


@st.composite
def removals(draw: st.DrawFn) -> Happening[Teller]:
    """Somebody wants it gone."""
    sandbox_id, force = draw(IDS), draw(st.booleans())
    return Happening(
        f"remove {sandbox_id}, force={force}",
        lambda story: story.ask(sandbox_id, lambda _: story.manager.remove(sandbox_id, force=force)),
    )


@st.composite
def cancellations(draw: st.DrawFn) -> Happening[Teller]:
    """Somebody does not wait any longer."""
    number = draw(st.integers(0, 9))

    def step(story: Teller) -> None:
        waiting = [client for client in story.clients if not client.over]
        if waiting:
            waiting[number % len(waiting)].scope.cancel()

    return Happening(f"peer {number} goes away", step)


async def checkpoints(count: int) -> None:
    """Let others do so many steps."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()
