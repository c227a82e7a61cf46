"""Requests to forward ports; where they lead is for the tests of real sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    import trio

    from tests.handlers.sandboxes.conftest import Rig

FORWARD, REMOVE = MessageType.SandboxPortForwardRequest, MessageType.SandboxPortForwardRemoveRequest
TCP, UDP = sandbox_v1.PORT_PROTOCOL_TCP, sandbox_v1.PORT_PROTOCOL_UDP


async def forward(rig: Rig, protocol: sandbox_v1.PortProtocol) -> int:
    request = sandbox_v1.SandboxPortForwardRequest(id="box", sandbox_port=80, protocol=protocol)
    frame = await rig.ask(FORWARD, request)
    assert frame.type == MessageType.SandboxPortForwardResponse
    return sandbox_v1.SandboxPortForwardResponse.FromString(frame.payload).guest_port


async def test_a_port_is_forwarded_once_for_each_protocol_and_taken_back(rig: Rig, nursery: trio.Nursery) -> None:
    nursery.start_soon(rig.sandboxes.guest.ports.run)
    await rig.sandboxes.create("box")
    port = await forward(rig, TCP)
    assert 40_000 <= port < 50_000
    assert await forward(rig, sandbox_v1.PORT_PROTOCOL_UNSPECIFIED) == port
    assert 40_000 <= await forward(rig, UDP) < 50_000
    request = sandbox_v1.SandboxPortForwardRemoveRequest(id="box", sandbox_port=80, protocol=UDP)
    frame = await rig.ask(REMOVE, request)
    assert (frame.type, frame.payload) == (MessageType.SandboxPortForwardRemoveResponse, b"")
    assert (await rig.refusal(REMOVE, request)).code == 404
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (sandbox_v1.SandboxPortForwardRequest(id="box", sandbox_port=0), 400),
        (sandbox_v1.SandboxPortForwardRequest(id="box", sandbox_port=65536), 400),
        (sandbox_v1.SandboxPortForwardRequest.FromString(b"\x0a\x03box\x10\x50\x18\x09"), 400),  # protocol 9
        (sandbox_v1.SandboxPortForwardRequest(id="other", sandbox_port=80), 404),
        (sandbox_v1.SandboxPortForwardRequest(id="box", sandbox_port=80), 503),  # the service does not run
    ],
)
async def test_what_can_not_be_forwarded_is_refused(
    rig: Rig, request_: sandbox_v1.SandboxPortForwardRequest, code: int
) -> None:
    await rig.sandboxes.create("box")
    assert (await rig.refusal(FORWARD, request_)).code == code
