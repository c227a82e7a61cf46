"""Ping and GetSystemInfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import asdict, frozen

from arcbox_handlers._command import QuickCommand
from arcbox_protocol import PROTOCOL_VERSION, MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_handlers._command import Context


@frozen
class Ping(QuickCommand[arcbox_v1.AgentPingRequest]):
    """Says that the agent is there, and sets the guest's clock by the host's."""

    handles = MessageType.PingRequest

    def __call__(self, context: Context) -> arcbox_v1.AgentPingResponse:
        request = self.request
        context.guest.clock.follow(request.timestamp_secs)
        message = request.message
        return arcbox_v1.AgentPingResponse(
            message=f"pong: {message}" if message else "pong",
            version=context.version,
            protocol_version=PROTOCOL_VERSION,
        )


@frozen
class GetSystemInfo(QuickCommand[None]):
    """What the guest is."""

    handles = MessageType.GetSystemInfoRequest

    def __call__(self, context: Context) -> arcbox_v1.SystemInfo:
        return arcbox_v1.SystemInfo(**asdict(context.guest.system.info(), recurse=False))
