"""EnsureRuntime: the slowest answer in every state of the container runtime."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define

from arcbox_protocol import MessageType, arcbox_v1, encode_frame
from bench.client import connect, receive_frame
from bench.figures import Samples, Target, compare
from bench.runtime import agent_with_runtime, can_be_had, send_signals

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.stage import Stage

_ROUNDS: Final = 5
"""Each goes through all states."""

_ASKED: Final = 100
"""Times in each state that lasts."""

_BETWEEN: Final = 0.01
"""Seconds between two requests."""

_REQUEST: Final = encode_frame(
    MessageType.EnsureRuntimeRequest, "", arcbox_v1.RuntimeEnsureRequest(start_if_needed=True).SerializeToString()
)


def measure(stage: Stage) -> list[Figure]:
    """The answers that took longest. Nothing where there can be no runtime."""
    if not can_be_had():
        return []
    answers: dict[str, list[_Answer]] = {}
    for _ in range(min(_ROUNDS, stage.rounds)):
        with agent_with_runtime(stage.directory) as (agent, state_dir), connect(agent.path) as connection:
            _ask_through_a_life(_Asking(connection, agent.pid, answers), state_dir / "dockerd.pid")
        nowhere = [str(stage.directory)]
        with agent_with_runtime(stage.directory, binary_dirs=nowhere) as (agent, _), connect(agent.path) as connection:
            _Asking(connection, agent.pid, answers).times(_ASKED, "failed")
    return [_figure(state, taken) for state, taken in answers.items()]


@define
class _Answer:
    """How long one took, in milliseconds."""

    elapsed: float
    """From the request to the reply."""

    queued: float
    """Of that, both processes could run and had no core: what else runs on this machine."""


@define
class _Asking:
    """Asks an agent."""

    _connection: socket.socket
    _agent: int
    """Its pid."""

    _answers: dict[str, list[_Answer]]
    """By state of the runtime; what is measured is added."""

    def once(self, state: str) -> arcbox_v1.RuntimeEnsureResponse:
        """Have the runtime ensured."""
        queued = _queued(self._agent)
        started = time.perf_counter()
        self._connection.sendall(_REQUEST)
        reply = receive_frame(self._connection)
        elapsed = time.perf_counter() - started
        queued = _queued(self._agent) - queued
        self._answers.setdefault(state, []).append(_Answer(elapsed * 1e3, queued * 1e3))
        return arcbox_v1.RuntimeEnsureResponse.FromString(reply.payload)

    def times(self, count: int, state: str) -> None:
        """In a state that lasts."""
        for _ in range(count):
            self.once(state)
            time.sleep(_BETWEEN)

    def until(self, ended: Callable[[arcbox_v1.RuntimeEnsureResponse], bool], state: str) -> None:
        """In a state that passes."""
        while not ended(self.once(state)):
            time.sleep(_BETWEEN)


def _ask_through_a_life(asking: _Asking, dockerd: Path) -> None:
    asking.once("not started")
    asking.until(lambda reply: reply.ready, "starting")
    asking.times(_ASKED, "ready")
    send_signals(dockerd, signal.SIGSTOP)
    asking.until(lambda reply: reply.status == "failed", "hung, not noticed")
    asking.times(_ASKED, "hung")
    send_signals(dockerd, signal.SIGCONT, signal.SIGKILL)
    asking.until(lambda reply: reply.ready, "starting again")


def _queued(agent: int) -> float:
    """Seconds for which the agent's main thread and this process waited for a core so far: proc_pid_schedstat(5)."""
    waited = [Path("/proc", process, "schedstat").read_text().split()[1] for process in (str(agent), "self")]
    return sum(map(int, waited)) / 1e9


def _figure(state: str, answers: list[_Answer]) -> Figure:
    own = max(answer.elapsed - answer.queued for answer in answers)
    elapsed = max(answer.elapsed for answer in answers)
    return compare(
        f"EnsureRuntime, slowest: {state}",
        "ms",
        Samples("agent", [own]),
        Samples("with waits for a core", [elapsed]),
        Target("value", "<", 50),
    )
