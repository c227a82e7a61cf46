"""The console of a machine whose PID 1 we are: the only place that is always there."""

from __future__ import annotations

import os
from contextlib import suppress


def say(text: str) -> None:
    """Write a line to standard error, which is the console; a console that is gone is no reason to fail."""
    with suppress(OSError):
        os.write(2, f"arcbox-agent[1]: {text}\n".encode(errors="backslashreplace"))
