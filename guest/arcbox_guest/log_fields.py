"""Fields that every log record of a task gets, and of the tasks that it starts: which sandbox it is about, say.

A task that works for longer than the request that started it has a context of its own, without that request's.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

log_fields: Final[ContextVar[Mapping[str, str] | None]] = ContextVar("log_fields", default=None)
"""The running task's; the agent's log handler adds them."""
