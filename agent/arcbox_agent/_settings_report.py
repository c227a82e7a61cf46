"""What `arcbox-agent config` shows: every setting, and where it came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arcbox_agent._tables import table
from arcbox_agent.settings import DEFAULT_FILE, FILE_VARIABLE, show, values

if TYPE_CHECKING:
    from arcbox_agent.settings import LoadedSettings


def for_people(loaded: LoadedSettings) -> str:
    """A table, and above it the file that was read."""
    none = f"No settings file: neither --config nor {FILE_VARIABLE} names one, and there is no {DEFAULT_FILE}."
    head = f"Settings file: {loaded.path}" if loaded.path else none
    rows = [(key, loaded.origins[key], show(value)) for key, value in values(loaded.settings).items()]
    return f"{head}\n\n{table([('SETTING', 'FROM', 'VALUE'), *rows])}"


def for_programs(loaded: LoadedSettings) -> str:
    """A JSON object.

    `path` is that of the file that was read, or null; `settings` has, by dotted key, objects of `value` and `origin`.
    """
    settings = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values(loaded.settings).items()}
    return json.dumps({"path": str(loaded.path) if loaded.path else None, "settings": settings}, indent=2)
