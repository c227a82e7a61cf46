"""What the figures and the table say of samples."""

from __future__ import annotations

import json

import pytest

from bench.figures import Figure, Samples, Spread, Target, compare
from bench.report import as_json, as_table


def a_figure(target: Target | None = None, floor: str = "echo") -> Figure:
    return compare("ping", "µs", Samples("agent", [20.0, 30.0, 40.0]), Samples(floor, [10.0, 10.0, 40.0]), target)


def test_a_ratio_is_taken_round_by_round() -> None:
    figure = a_figure()
    assert (figure.value.median, figure.floor.median) == (30, 10)
    assert figure.ratio == Spread(median=2, lower=1.5, upper=2.5)  # of 20/10, 30/10 and 40/40


def test_a_single_sample_is_its_own_spread() -> None:
    assert Spread.of([7.0]) == Spread(median=7, lower=7, upper=7)


def test_samples_of_different_rounds_are_no_figure() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare("ping", "µs", Samples("agent", [1.0, 2.0]), Samples("echo", [1.0]))


def test_seconds_become_rates() -> None:
    assert Samples("agent", [0.5, 0.001]).per_second() == Samples("agent", [2.0, 1000.0])


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("ratio", "≤", 2.0), True),
        (Target("ratio", "≤", 1.9), False),
        (Target("ratio", "≥", 2.0), True),
        (Target("ratio", "≥", 2.1), False),
        (Target("value", "<", 31), True),
        (Target("value", "<", 30), False),
        (None, None),
    ],
)
def test_a_target_bounds_the_median_of_the_ratio_or_of_the_value(target: Target | None, met: bool | None) -> None:  # noqa: FBT001  parametrized
    assert a_figure(target).meets_target is met


def test_a_figure_beside_a_second_floor_is_named_once() -> None:
    table = as_table([a_figure(), a_figure(floor="trio"), compare("memory", "MiB", Samples("", [1]), Samples("", [1]))])
    assert table.count("ping") == 1
    assert table.count("30.0 µs (25.0..35.0)") == 1
    assert table.count("2.00 (1.50..2.50)") == 2


def test_a_missed_target_stands_out() -> None:
    assert as_table([a_figure(Target("ratio", "≥", 0.8))]).endswith("≥ 0.8  met")
    assert as_table([a_figure(Target("ratio", "≤", 1.0))]).endswith("≤ 1.0  MISSED")
    assert as_table([a_figure(Target("value", "<", 500))]).endswith("< 500 µs  met")


def test_programs_get_the_quartiles_and_the_verdict() -> None:
    (figure,) = json.loads(as_json([a_figure(Target("ratio", "≤", 1.0))]))
    assert figure["ratio"] == {"median": 2, "lower": 1.5, "upper": 2.5}
    assert figure["target"] == {"of": "ratio", "relation": "≤", "bound": 1.0}
    assert figure["meets_target"] is False
