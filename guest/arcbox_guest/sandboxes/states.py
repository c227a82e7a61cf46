"""The life of a sandbox as one table, and the errors for what does not fit into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arcbox_guest.errors import ConflictError, PausedError, PreconditionError
from arcbox_guest.sandboxes.model import Action, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arcbox_guest.sandboxes.model import Sandbox

_AFTER: Final[Mapping[State, Mapping[Action, State | None]]] = {
    State.STARTING: {Action.READY: State.READY, Action.STOPPING: State.STOPPING, Action.FAILED: State.FAILED},
    State.READY: {
        Action.RUNNING: State.RUNNING,
        Action.PAUSED: State.PAUSED,
        Action.STOPPING: State.STOPPING,
        Action.FAILED: State.FAILED,
    },
    State.RUNNING: {Action.IDLE: State.READY, Action.STOPPING: State.STOPPING, Action.FAILED: State.FAILED},
    State.PAUSED: {Action.RESUMED: State.READY, Action.STOPPING: State.STOPPING, Action.FAILED: State.FAILED},
    State.STOPPING: {Action.STOPPED: State.STOPPED, Action.FAILED: State.FAILED, Action.REMOVED: None},
    State.STOPPED: {Action.REMOVED: None},
    State.FAILED: {Action.REMOVED: None},
}
"""What comes of what happens. Every life begins in STARTING, by CREATED, and ends in None, by REMOVED."""

LIVE: Final = frozenset({State.STARTING, State.READY, State.RUNNING, State.PAUSED})
"""The states of a sandbox that nobody has asked to end yet."""

ALIVE: Final = frozenset({State.READY, State.RUNNING, State.PAUSED})
"""The states in which a sandbox has its files and its network."""

READY: Final = frozenset({State.READY})
"""What a process needs that wants a sandbox to itself."""

READY_OR_RUNNING: Final = frozenset({State.READY, State.RUNNING})
"""What a process needs that does not mind others."""

_IMPOSSIBLE: Final = {
    Action.READY: "it can't get ready",
    Action.RUNNING: "nothing can run in it",
    Action.IDLE: "nothing runs in it",
    Action.PAUSED: "only one that is ready can be paused",
    Action.RESUMED: "only one that is paused can be resumed",
    Action.STOPPING: "it can't be stopped",
    Action.STOPPED: "it can't have stopped",
    Action.FAILED: "it can't fail",
    Action.REMOVED: "it can't be removed yet",
}


def after(sandbox: Sandbox, action: Action) -> State | None:
    """The state that a sandbox gets into; None when it is gone.

    Raises:
        ConflictError: that can't happen to it in the state that it is in.
    """
    following = _AFTER[sandbox.state]
    if action not in following:
        raise ConflictError(f"{describe(sandbox)}: {_IMPOSSIBLE[action]}")
    return following[action]


def check_may_run(sandbox: Sandbox, needs: frozenset[State]) -> None:
    """Find out whether a process can be started.

    Raises:
        PausedError: not before it is resumed.
        ConflictError: not in the state that the sandbox is in.
    """
    if sandbox.state in needs:
        return
    match sandbox.state:
        case State.PAUSED:
            raise PausedError(f"{describe(sandbox)}: nothing can run in it before it is resumed")
        case State.RUNNING:
            advice = "run waits for no one and needs the sandbox to itself; exec does not"
        case State.STARTING:
            advice = "nothing can run in it before it is ready"
        case _:
            advice = "nothing can run in it any more"
    raise ConflictError(f"{describe(sandbox)}: {advice}")


def check_may(sandbox: Sandbox, action: Action) -> None:
    """Find out whether something can be done that needs one certain state.

    Raises:
        PreconditionError: the sandbox is in another one.
    """
    try:
        after(sandbox, action)
    except ConflictError as error:
        raise PreconditionError(str(error)) from None


def check_may_remove(sandbox: Sandbox, *, force: bool) -> None:
    """Find out whether a removal can begin.

    Raises:
        ConflictError: something runs in it.
    """
    if sandbox.state is State.RUNNING and not force:
        raise ConflictError(f"{describe(sandbox)}: stop it first, or remove it by force")


def describe(sandbox: Sandbox) -> str:
    """The beginning of a sentence for people: which sandbox, and in what state."""
    if sandbox.state is State.FAILED:
        return f"sandbox {sandbox.id} has failed ({sandbox.error})"
    return f"sandbox {sandbox.id} is {sandbox.state}"
