"""The table of states, against the story that it tells, and the errors that people read."""

from __future__ import annotations

import re
from itertools import product

import pytest

from arcbox_guest.errors import ConflictError, PausedError
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.model import Action, Sandbox, Spec, State

STORY = re.compile(
    r"created( ready( running idle| paused resumed)*( running| paused)?)?"
    r"(( stopping( stopped| failed)?| failed)( removed)?)?"
)
"""All that can happen to a sandbox, in order."""

LETTERS = [action for action in Action if action is not Action.CREATED]


def sandbox(state: State) -> Sandbox:
    return Sandbox(spec=Spec(id="web"), state=state, created_at=1.0, error="its disk is full")


def happens(actions: tuple[Action, ...]) -> bool:
    """Whether the table lets all that happen, one after the other."""
    state: State | None = State.STARTING
    for action in actions:
        if state is None:
            return False
        try:
            state = states.after(sandbox(state), action)
        except ConflictError:
            return False
    return True


@pytest.mark.parametrize("length", range(6))
def test_the_table_allows_what_the_story_tells_and_nothing_else(length: int) -> None:
    for actions in product(LETTERS, repeat=length):
        told = " ".join([Action.CREATED, *actions])
        assert happens(actions) == (STORY.fullmatch(told) is not None), told


@pytest.mark.parametrize("state", State)
def test_a_sandbox_that_is_not_live_can_not_be_stopped(state: State) -> None:
    if state in states.LIVE:
        assert states.after(sandbox(state), Action.STOPPING) is State.STOPPING
    else:
        with pytest.raises(ConflictError, match="web"):
            states.after(sandbox(state), Action.STOPPING)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (State.STARTING, "sandbox web is starting: nothing can run in it before it is ready"),
        (State.RUNNING, "sandbox web is running: .*exec does not"),
        (State.STOPPING, "sandbox web is stopping: nothing can run in it any more"),
        (State.STOPPED, "sandbox web is stopped: nothing can run in it any more"),
        (State.FAILED, r"sandbox web has failed \(its disk is full\): nothing can run in it any more"),
    ],
)
def test_a_refusal_to_run_says_why_and_what_else_could_be_done(state: State, says: str) -> None:
    with pytest.raises(ConflictError, match=says):
        states.check_may_run(sandbox(state), states.READY)


def test_nothing_runs_in_a_paused_sandbox_before_it_is_resumed() -> None:
    with pytest.raises(PausedError, match="sandbox web is paused: nothing can run in it before it is resumed"):
        states.check_may_run(sandbox(State.PAUSED), states.READY_OR_RUNNING)


def test_what_does_not_need_a_sandbox_to_itself_runs_beside_others() -> None:
    states.check_may_run(sandbox(State.READY), states.READY)
    states.check_may_run(sandbox(State.READY), states.READY_OR_RUNNING)
    states.check_may_run(sandbox(State.RUNNING), states.READY_OR_RUNNING)


@pytest.mark.parametrize("state", State)
def test_only_a_running_sandbox_needs_force_to_be_removed(state: State) -> None:
    states.check_may_remove(sandbox(state), force=True)
    if state is State.RUNNING:
        with pytest.raises(ConflictError, match="web is running: stop it first, or remove it by force"):
            states.check_may_remove(sandbox(state), force=False)
    else:
        states.check_may_remove(sandbox(state), force=False)
