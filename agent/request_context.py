"""What the log says of every record without being told: whose request it was written for."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from protocol import EXCHANGES

if TYPE_CHECKING:
    from protocol import Frame

current_peer: ContextVar[str | None] = ContextVar("current_peer", default=None)
"""The peer of the connection that the running task belongs to."""

current_request: ContextVar[Frame | None] = ContextVar("current_request", default=None)
"""The request that the running task works on. The frame itself, since setting it must cost next to nothing."""


def request_fields() -> dict[str, str]:
    """The fields that a log record gets from where it was written: peer, request type, trace id."""
    fields: dict[str, str] = {}
    peer = current_peer.get()
    if peer is not None:
        fields["peer"] = peer
    request = current_request.get()
    if request is not None:
        exchange = EXCHANGES.get(request.type)
        fields["request"] = exchange.request.name if exchange else f"0x{request.type:04X}"
        if request.trace_id:
            fields["trace_id"] = request.trace_id
    return fields
