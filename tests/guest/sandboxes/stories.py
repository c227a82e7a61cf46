"""What stories of sandboxes have in common, whether they are told of a driver in memory or of a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import Factory, define

from guest.sandboxes.events import EventHub
from guest.sandboxes.model import Action

if TYPE_CHECKING:
    from collections.abc import Mapping

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
