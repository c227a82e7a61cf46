"""Rows: a table on a terminal, aligned columns elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


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
