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
