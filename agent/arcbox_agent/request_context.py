"""What the log says of every record without being told: whose request it was written for."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from attrs import define

from arcbox_protocol import EXCHANGES

if TYPE_CHECKING:
    from arcbox_protocol import Frame


@define(eq=False)
class Activity:
    """What a task works on. Another task that works on something else has another one."""

    peer: str
    """Of the connection that the task belongs to."""

    request: Frame | None = None
    """The frame itself, since this changes with every ping: it must cost next to nothing."""


current_activity: ContextVar[Activity | None] = ContextVar("current_activity", default=None)
"""The running task's; None outside of connections."""


def request_fields() -> dict[str, str]:
    """The fields that a log record gets from where it was written: peer, request type, trace id."""
    activity = current_activity.get()
    if activity is None:
        return {}
    fields = {"peer": activity.peer}
    request = activity.request
    if request is not None:
        exchange = EXCHANGES.get(request.type)
        fields["request"] = exchange.request.name if exchange else f"0x{request.type:04X}"
        if request.trace_id:
            fields["trace_id"] = request.trace_id
    return fields
