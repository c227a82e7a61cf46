"""The other end: `AgentClient` for harnesses, the `arcboxctl` command, the pytest plugin.

Names are imported when they are first used: pytest loads the plugin of this package at every start, and a harness
that does not talk to an agent should not pay for Trio and protobuf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arcbox_client.addresses import Address, UnixAddress, VsockAddress, parse_address
    from arcbox_client.client import AgentClient, connect
    from arcbox_client.errors import AgentError
    from arcbox_client.sessions import Completed, EventStream, ExecSession, Output, RunSession

_HOMES = {
    "Address": "addresses",
    "AgentClient": "client",
    "AgentError": "errors",
    "Completed": "sessions",
    "EventStream": "sessions",
    "ExecSession": "sessions",
    "Output": "sessions",
    "RunSession": "sessions",
    "UnixAddress": "addresses",
    "VsockAddress": "addresses",
    "connect": "client",
    "parse_address": "addresses",
}

__all__ = [
    "Address",
    "AgentClient",
    "AgentError",
    "Completed",
    "EventStream",
    "ExecSession",
    "Output",
    "RunSession",
    "UnixAddress",
    "VsockAddress",
    "connect",
    "parse_address",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"arcbox_client.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
