"""What a benchmark reports: medians with their quartiles, and how they stand to a floor and a target."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Literal

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class Spread:
    """The middle of some samples: half of them lie between the quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """At least one sample, in any order."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


@frozen
class Target:
    """What the project set itself: a bound on the ratio, or on the measured value."""

    of: Literal["ratio", "value"]
    relation: Literal["<", "≤", "≥"]
    bound: float

    def is_met_by(self, median: float) -> bool:
        """Whether this median is on the right side of the bound."""
        match self.relation:
            case "<":
                return median < self.bound
            case "≤":
                return median <= self.bound
            case "≥":
                return median >= self.bound


@frozen(kw_only=True)
class Figure:
    """One line of the report. `value` and `floor` have the same unit."""

    name: str
    unit: str
    value: Spread
    floor_name: str
    floor: Spread
    ratio: Spread
    """Of the two samples of each round: what slows the machine for a while slows both, and cancels out."""

    target: Target | None

    @property
    def meets_target(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.target.is_met_by((self.ratio if self.target.of == "ratio" else self.value).median)


@frozen
class Samples:
    """What one contender measured, one number a round."""

    name: str
    numbers: Sequence[float]

    def scaled(self, factor: float) -> Samples:
        """The same in another unit."""
        return Samples(self.name, [number * factor for number in self.numbers])

    def per_second(self) -> Samples:
        """Rates instead of seconds."""
        return Samples(self.name, [1 / number for number in self.numbers])

    def per_millisecond(self) -> Samples:
        """Thousands per second instead of seconds."""
        return self.per_second().scaled(1e-3)


def compare(name: str, unit: str, samples: Samples, floor: Samples, target: Target | None = None) -> Figure:
    """The figure of samples and a floor that come from the same rounds and are in the same unit."""
    pairs = zip(samples.numbers, floor.numbers, strict=True)
    return Figure(
        name=name,
        unit=unit,
        value=Spread.of(samples.numbers),
        floor_name=floor.name,
        floor=Spread.of(floor.numbers),
        ratio=Spread.of([number / bottom for number, bottom in pairs]),
        target=target,
    )
