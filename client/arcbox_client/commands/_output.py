"""How results look: JSON for programs, a table on a terminal, plain lines in a pipe."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence

import click
from google.protobuf.message import Message


def show_json(value: object) -> None:
    """One line of JSON."""
    click.echo(json.dumps(value, ensure_ascii=False))


def show_facts(facts: Mapping[str, str]) -> None:
    """Names and values: a table on a terminal, `name: value` lines elsewhere."""
    if not sys.stdout.isatty():
        for name, value in facts.items():
            click.echo(f"{name}: {value}")
        return
    from rich import box  # noqa: PLC0415  only a terminal needs it, and it takes longer to load than a ping takes
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.ROUNDED, show_header=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their heads; the first column has their names, and one of which nothing is known has "-".

    A pipe gets each cell whole, however wide that is. A terminal folds what has no room, but for the names, which are
    there to be copied, and is spared the columns in which there is nothing.
    """
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in [heads, *rows]:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich import box  # noqa: PLC0415  only a terminal needs it, and it takes longer to load than a list takes
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.ROUNDED, header_style="bold cyan")
    columns = list(zip(heads, *rows, strict=True))
    shown = [column for column in columns if set(column[1:]) != {"-"}]
    for index, (head, *_) in enumerate(shown):
        table.add_column(head, overflow="fold", no_wrap=index == 0)
    for row in list(zip(*shown, strict=True))[1:]:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def as_plain(message: Message) -> dict[str, object]:
    """A protobuf message as JSON has it: all fields under their own names, numbers as numbers, bytes in base64."""
    return {field.name: _plain(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Message):
        return as_plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def human_size(size: int) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    amount, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def human_duration(seconds: int) -> str:
    """Seconds in the two largest units."""
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])
