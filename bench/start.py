"""From exec to the first pong, against an interpreter that does nothing, or loads what any agent of Trio's loads."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from bench.client import PING, connect, receive_frame
from bench.figures import Target, compare
from bench.processes import agent
from bench.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.stage import Stage

_NOTHING = "python -c pass"
_TRIO = "python -c 'import trio'"


def measure(stage: Stage) -> list[Figure]:
    """The agent says by itself when it is ready: nothing polls for it, so nothing slows it down."""
    contenders: dict[str, Callable[[], float]] = {
        "agent": partial(_to_first_pong, stage),
        _NOTHING: partial(_to_the_end_of, "pass"),
        _TRIO: partial(_to_the_end_of, "import trio"),
    }
    for warm_up in contenders.values():
        warm_up()
    samples = {name: taken.scaled(1e3) for name, taken in interleave(contenders, stage.rounds).items()}
    name, target = "exec to first pong", Target("value", "≤", 250)
    return [
        compare(name, "ms", samples["agent"], samples[_NOTHING], target),
        compare(name, "ms", samples["agent"], samples[_TRIO]),
    ]


def _to_first_pong(stage: Stage) -> float:
    start = time.perf_counter()
    with agent(stage.directory, settled=False) as server, connect(server.path) as connection:
        connection.sendall(PING)
        receive_frame(connection)
        return time.perf_counter() - start


def _to_the_end_of(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start
