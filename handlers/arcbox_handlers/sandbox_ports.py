"""SandboxPortForward and SandboxPortForwardRemove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.ports import Transport
from arcbox_handlers._command import UnaryCommand
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from arcbox_handlers._command import Context

_TRANSPORTS: Final = {
    sandbox_v1.PORT_PROTOCOL_UNSPECIFIED: Transport.TCP,
    sandbox_v1.PORT_PROTOCOL_TCP: Transport.TCP,
    sandbox_v1.PORT_PROTOCOL_UDP: Transport.UDP,
}


@frozen
class SandboxPortForward(UnaryCommand[sandbox_v1.SandboxPortForwardRequest]):
    """A port of the guest that leads to a sandbox's."""

    handles = MessageType.SandboxPortForwardRequest

    async def __call__(self, context: Context) -> sandbox_v1.SandboxPortForwardResponse:
        request = self.request
        transport = _transport(request.protocol)
        port = await context.guest.ports.add(request.id, request.sandbox_port, transport)
        return sandbox_v1.SandboxPortForwardResponse(guest_port=port)


@frozen
class SandboxPortForwardRemove(UnaryCommand[sandbox_v1.SandboxPortForwardRemoveRequest]):
    """No longer."""

    handles = MessageType.SandboxPortForwardRemoveRequest

    async def __call__(self, context: Context) -> None:
        request = self.request
        await context.guest.ports.remove(request.id, request.sandbox_port, _transport(request.protocol))


def _transport(protocol: sandbox_v1.PortProtocol) -> Transport:
    if protocol not in _TRANSPORTS:
        raise InvalidArgumentError(f"{protocol} is no protocol: TCP is 1, UDP is 2")
    return _TRANSPORTS[protocol]
