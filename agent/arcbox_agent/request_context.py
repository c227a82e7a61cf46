"""What the log says of every record without being told: whose request it was written for.

Both are immutable values in context variables, so a task that is started for a request keeps that request's, whatever
its connection goes on to.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from arcbox_guest.log_fields import log_fields
from arcbox_protocol import EXCHANGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_protocol import Frame

current_peer: ContextVar[str | None] = ContextVar("current_peer", default=None)
"""The peer of the connection that the running task belongs to; None outside of connections."""

current_request: ContextVar[Frame | None] = ContextVar("current_request", default=None)
"""The frame of the request that the running task works on."""


@contextmanager
def working_on(request: Frame) -> Iterator[None]:
    """Have records name this request, for as long as the context lasts."""
    token = current_request.set(request)
    try:
        yield
    finally:
        current_request.reset(token)


def request_fields() -> dict[str, str]:
    """The fields that a log record gets from where it was written: the guest's own; peer, request type, trace id."""
    fields = dict(log_fields.get() or {})
    peer = current_peer.get()
    if peer is None:
        return fields
    fields["peer"] = peer
    request = current_request.get()
    if request is not None:
        exchange = EXCHANGES.get(request.type)
        fields["request"] = exchange.request.name if exchange else f"0x{request.type:04X}"
        if request.trace_id:
            fields["trace_id"] = request.trace_id
    return fields
