"""Checkpoints and restores of sandboxes with many files, or a large one, beside those of one with nothing in it.

What they take must not depend on what was written: nothing is copied.
"""

from __future__ import annotations

import sys
import time
from itertools import count
from typing import TYPE_CHECKING, Final

from bench.figures import Samples, Target, compare
from bench.rounds import interleave
from bench.sandbox_host import sandbox_agent
from bench.sandboxes import why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.figures import Figure
    from bench.stage import Stage

_FILES: Final = 10_000
_ROUNDS: Final = 5
"""Each writes a gigabyte."""

_CONTENTS: Final = {
    "nothing": "true",
    f"{_FILES:,} files": f"mkdir /x && seq {_FILES} | awk '{{ name = \"/x/\" $1; print > name; close(name) }}'",
    "1 GiB": "dd if=/dev/zero of=/x bs=1M count=1024 status=none",
}
"""What is written, and how."""

_NOTHING, *_WRITTEN = _CONTENTS


def measure(stage: Stage) -> list[Figure]:
    """What snapshots cost. Nothing where there can't be sandboxes."""
    if why := why_not():
        print(f"  left out: {why}", file=sys.stderr)
        return []
    _agent, host, events = sandbox_agent(stage)
    times: dict[str, list[float]] = {name: [] for name in _CONTENTS}
    numbers = count()

    def both(contents: str) -> Callable[[], float]:
        """Checkpoint a new sandbox with some contents, and restore it; the seconds of the former are returned."""

        def contender() -> float:
            origin, restored = f"origin-{next(numbers)}", f"restored-{next(numbers)}"
            host.create(events, origin, memory_mib=256)
            host.run(origin, "sh", "-c", _CONTENTS[contents])
            started = time.perf_counter()
            snapshot = host.checkpoint(origin)
            taken = time.perf_counter()
            host.restore(snapshot, restored)
            times[contents].append(time.perf_counter() - taken)
            for sandbox_id in (origin, restored):
                host.remove(sandbox_id)
            host.delete_snapshot(snapshot)
            return taken - started

        return contender

    checkpoints = interleave({name: both(name) for name in _CONTENTS}, min(_ROUNDS, stage.rounds))
    restores = {name: Samples(name, taken) for name, taken in times.items()}
    return [*_figures("checkpoint", checkpoints), *_figures("restore", restores)]


def _figures(what: str, samples: dict[str, Samples]) -> Iterator[Figure]:
    for name in _WRITTEN:
        taken, floor = samples[name].scaled(1e3), samples[_NOTHING].scaled(1e3)
        yield compare(f"sandbox, {what} of {name}", "ms", taken, floor, Target("value", "<", 500))
