"""Sandboxes with a network, beside those that have loopback only. The agent is in a network namespace of its own."""

from __future__ import annotations

import shutil
import sys
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from bench.figures import Target, compare
from bench.rounds import interleave
from bench.sandbox_host import sandbox_agent
from bench.sandboxes import why_not

if TYPE_CHECKING:
    from bench.figures import Figure
    from bench.stage import Stage

_NEEDED: Final = ("nft", "ip", "unshare")


def measure(stage: Stage) -> list[Figure]:
    """What a network costs. Nothing where there can't be one."""
    missing = [name for name in _NEEDED if not shutil.which(name)]
    if why := why_not() or ", ".join(missing):
        print(f"  left out: {why}", file=sys.stderr)
        return []
    _agent, host, events = sandbox_agent(stage, apart=True)
    host.create(events, "first", network="tap")  # has bridge, rules and DNS server made
    numbers = count()

    def create(network: str) -> float:
        sandbox_id = f"made-{next(numbers)}"
        started = time.perf_counter()
        host.create(events, sandbox_id, network=network)
        elapsed = time.perf_counter() - started
        host.remove(sandbox_id)
        return elapsed

    samples = interleave({network: partial(create, network) for network in ("tap", "none")}, stage.rounds)
    taken, floor = samples["tap"].scaled(1e3), samples["none"].scaled(1e3)
    return [compare("sandbox with a network, to ready", "ms", taken, floor, Target("ratio", "≤", 1.5))]
