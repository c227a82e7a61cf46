"""The end of the agent's process, for tests of what its host does then."""

from __future__ import annotations

import os
import threading
from typing import Final

from attrs import frozen

from arcbox_guest.errors import NotSupportedError

_DELAY: Final = 0.1
"""Seconds from the acknowledgement to the end."""


@frozen
class KillSwitch:
    """Ends this process, if the settings allow it."""

    _enabled: bool

    def check(self) -> None:
        """Raises NotSupportedError: the settings forbid it."""
        if not self._enabled:
            raise NotSupportedError("the agent can't be killed by a request here: machine.allow_kill is false")

    def press(self) -> None:
        """Have the process exit with status 1 in 0.1 s, whatever its event loop does meanwhile."""
        threading.Timer(_DELAY, os._exit, (1,)).start()
