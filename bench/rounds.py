"""Interleaved rounds: every contender takes its turn in every round, so that no one has the quiet minute alone."""

from __future__ import annotations

import gc
import itertools
import time
from typing import TYPE_CHECKING

from bench.figures import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Samples]:
    """Call every contender once a round and keep what it returns; another one begins each round."""
    numbers: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    gc.collect()
    gc.disable()
    try:
        for first in itertools.islice(itertools.cycle(range(len(names))), rounds):
            for name in names[first:] + names[:first]:
                numbers[name].append(contenders[name]())
    finally:
        gc.enable()
    return {name: Samples(name, taken) for name, taken in numbers.items()}


def seconds_each(work: Callable[[int], None], sample_seconds: float) -> Callable[[], float]:
    """A contender that does `work(count)` and returns the seconds that one of them took.

    The count is found here, by trying, such that one sample takes about `sample_seconds`. That warms up, too.
    """
    count, elapsed = 1, 0.0
    while elapsed < sample_seconds / 4:
        count *= 4
        elapsed = _seconds(work, count)
    count = max(1, round(count * sample_seconds / elapsed))
    return lambda: _seconds(work, count) / count


def _seconds(work: Callable[[int], None], count: int) -> float:
    start = time.perf_counter_ns()
    work(count)
    return (time.perf_counter_ns() - start) / 1e9
