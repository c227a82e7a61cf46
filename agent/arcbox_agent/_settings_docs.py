"""Generates docs/settings.md: `python -m arcbox_agent._settings_docs --write`, and `--check` that it is fresh."""

from __future__ import annotations

import argparse
import sys
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import fields, has, resolve_types

from arcbox_agent.settings import DEFAULT_FILE, FILE_VARIABLE, Settings, expected, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrs import Attribute

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_INTRODUCTION = f"""\
<!-- Generated from arcbox_agent/settings.py by `python -m arcbox_agent._settings_docs --write`: change it there. -->

# Settings

The agent reads one TOML file, the first of these:

1. the one that `--config FILE` names;
2. the one that the environment variable `{FILE_VARIABLE}` names;
3. `{DEFAULT_FILE}`, if it is there.

A setting that the file leaves out has its default, and without any file all of them have. `--listen ADDR`, which may be
given more than once, stands in for `listen`. Sockets that systemd passes stand in for the default of `listen`, and come
beside any other addresses.

A file that is named but can't be read, an unknown key, a value of the wrong type or out of its range: each is an
error, and the agent does not start. All that is wrong with a file is reported at once. `arcbox-agent config` shows the
settings that `arcbox-agent serve` would use, and where each comes from.

```toml
{{example}}
```
"""

_EXAMPLE = """\
listen = ["vsock:1024", "unix:/run/arcbox/agent.sock"]

[limits]
max_connections = 256

[disk]
trim_interval = 0  # only when the host asks

[log]
level = "debug"\
"""


def page() -> str:
    """The text of docs/settings.md."""
    return "\n".join([_INTRODUCTION.replace("{example}", _EXAMPLE), *_sections(Settings, "")])


def _sections(section: type[Any], name: str) -> Iterator[str]:
    attributes = fields(resolve_types(section))
    heading = f"`[{name}]`" if name else "Before the first section"
    yield f"## {heading}\n\n{section.__doc__}\n"
    rows = [_row(attribute) for attribute in attributes if not has(attribute.type)]
    if rows:
        yield from ("| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows, "")
    for attribute in attributes:
        if has(attribute.type):
            yield from _sections(attribute.type, f"{name}.{attribute.name}".lstrip("."))


def _row(attribute: Attribute[Any]) -> str:
    cells = (
        f"`{attribute.name}`",
        expected(attribute),
        f"`{show(attribute.default)}`",
        attribute.metadata["meaning"],
    )
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def stale(path: Path) -> str:
    """How a page differs from what it should be, as a unified diff; empty when it does not."""
    there = path.read_text("utf-8") if path.exists() else ""
    lines = unified_diff(there.splitlines(), page().splitlines(), str(path), "generated", lineterm="")
    return "\n".join(lines)


def main() -> int:
    """Write the page, or check it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m arcbox_agent._settings_docs", description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    mode.add_argument("--check", action="store_true", help="print a diff and fail if it is not what it should be")
    if parser.parse_args().write:
        PAGE.write_text(page(), "utf-8")
        return 0
    if difference := stale(PAGE):
        print(difference, "The page is stale: run python -m arcbox_agent._settings_docs --write", sep="\n")  # noqa: T201  a tool
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
