"""The figures as a table for people and as JSON for programs."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.figures import Figure, Spread

_HEADINGS = ("figure", "agent", "floor", "", "ratio", "target")


def as_json(figures: Sequence[Figure]) -> str:
    """A list of objects, with `meets_target` true, false or null."""
    return json.dumps([attrs.asdict(figure) | {"meets_target": figure.meets_target} for figure in figures], indent=2)


def as_table(figures: Sequence[Figure]) -> str:
    """One line a figure. What a line has in common with the one above it is left out."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    measured: tuple[str, str] | None = None
    for figure in figures:
        name_and_value = figure.name, _with_unit(figure.value, figure.unit)
        cells = ("", "") if name_and_value == measured else name_and_value
        measured = name_and_value
        floor = (figure.floor_name, _with_unit(figure.floor, figure.unit))
        rows.append((*cells, *floor, _with_unit(figure.ratio, ""), _target(figure)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(itertools.chain(lines[:1], ["-" * max(map(len, lines))], lines[1:]))


def _with_unit(spread: Spread, unit: str) -> str:
    return f"{_number(spread.median)} {unit}".rstrip() + f" ({_number(spread.lower)}..{_number(spread.upper)})"


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    verdict = "met" if figure.meets_target else "MISSED"
    bound = f"{figure.target.bound}" if figure.target.of == "ratio" else f"{figure.target.bound:g} {figure.unit}"
    return f"{figure.target.relation} {bound}  {verdict}"


def _number(value: float) -> str:
    """Three digits that count, and none after the point where there are more before it."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{decimals}f}"
