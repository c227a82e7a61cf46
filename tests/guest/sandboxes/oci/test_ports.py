"""Ports of the guest that lead into real sandboxes."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define

from arcbox_guest.errors import InvalidArgumentError, NotFoundError, PreconditionError
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import Action, ExecSpec, NetworkMode, Spec
from arcbox_guest.sandboxes.ports import PORTS, PortForwards, Transport
from arcbox_guest.sandboxes.testing import FakeRecords
from tests.guest.sandboxes.oci.conftest import python_mounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.guest.sandboxes.oci.conftest import World

pytestmark = pytest.mark.parametrize("technique", ["crun"], indirect=True)  # the namespace is the kernel's

SERVER = """
import socket, sys
kind, address = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.socket(family, getattr(socket, kind))
server.bind((address, 8080))
if kind == "SOCK_DGRAM":
    print("ready", flush=True)
    while True:
        data, peer = server.recvfrom(65536)
        server.sendto(data.upper(), peer)
server.listen()
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data.upper())
    connection.sendall(b"end")
    connection.close()
"""


@define(eq=False)
class Rig:
    manager: SandboxManager
    ports: PortForwards

    async def serve(self, nursery: trio.Nursery, kind: str, address: str) -> None:
        """Have a server run in the sandbox, and wait until it listens."""
        command = ExecSpec(argv=(sys.executable, "-I", "-S", "-c", SERVER, kind, address))
        listening = trio.Event()

        async def run() -> None:
            async with self.manager.process("box", command) as process:
                assert bytes(await process.stdout.receive()) == b"ready\n"
                listening.set()
                await process.wait()

        nursery.start_soon(run)
        await listening.wait()


@pytest.fixture
async def rig(world: World, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    """A sandbox `box` without a network of its own, and forwarding."""
    manager = SandboxManager(world.driver, FakeRecords(), EventHub(), Defaults(rootfs=world.rootfs))
    ports = PortForwards(manager)
    nursery.start_soon(manager.run)
    nursery.start_soon(ports.run)
    await manager.opened()
    with manager.subscribe("box", Action.READY) as happened:
        await manager.create(Spec(id="box", mounts=tuple(python_mounts()), network=NetworkMode.NONE))
        await anext(happened)
    yield Rig(manager, ports)
    await manager.remove("box", force=True)
    nursery.cancel_scope.cancel()


async def ask(port: int, data: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        pieces = []
        with suppress(trio.BrokenResourceError):  # a refusal inside is a connection that ends
            await stream.send_all(data)
            await stream.send_eof()
            pieces += [piece async for piece in stream]
        return b"".join(pieces)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])  # noqa: S104  in a sandbox
async def test_a_connection_reaches_what_listens_inside(rig: Rig, nursery: trio.Nursery, address: str) -> None:
    port = await rig.ports.add("box", 8080, Transport.TCP)
    assert port in PORTS
    assert await rig.ports.add("box", 8080, Transport.TCP) == port
    assert await ask(port, b"too early") == b""
    await rig.serve(nursery, "SOCK_STREAM", address)
    assert await ask(port, b"hello") == b"HELLOend"
    large = os.urandom(2 << 20).hex().encode()
    assert await ask(port, large) == large.upper() + b"end"


async def test_datagrams_find_their_way_back(rig: Rig, nursery: trio.Nursery) -> None:
    await rig.serve(nursery, "SOCK_DGRAM", "127.0.0.1")
    port = await rig.ports.add("box", 8080, Transport.UDP)
    peers = [trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for number, peer in enumerate(peers):
        await peer.connect(("127.0.0.1", port))
        await peer.send(b"from %d" % number)
    for number, peer in enumerate(peers):
        assert await peer.recv(100) == b"FROM %d" % number
        peer.close()


async def test_what_is_taken_back_is_closed_and_the_port_is_free(rig: Rig, nursery: trio.Nursery) -> None:
    await rig.serve(nursery, "SOCK_STREAM", "127.0.0.1")
    port = await rig.ports.add("box", 8080, Transport.TCP)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"a")
        assert await stream.receive_some() == b"A"
        await rig.ports.remove("box", 8080, Transport.TCP)
        with pytest.raises(OSError, match=str(port)):
            await trio.open_tcp_stream("127.0.0.1", port)
        assert await stream.receive_some() == b""
    with pytest.raises(NotFoundError):
        await rig.ports.remove("box", 8080, Transport.TCP)


async def test_a_forwarding_ends_with_its_sandbox(rig: Rig) -> None:
    port = await rig.ports.add("box", 8080, Transport.TCP)
    forwarding = next(iter(rig.ports._forwardings.values()))
    await rig.manager.stop("box", 0)
    await forwarding.ended.wait()
    with pytest.raises(OSError, match=str(port)):
        await trio.open_tcp_stream("127.0.0.1", port)
    with pytest.raises(PreconditionError):
        await rig.ports.add("box", 8080, Transport.TCP)


async def test_what_there_is_not_is_not_forwarded(rig: Rig) -> None:
    with pytest.raises(NotFoundError):
        await rig.ports.add("other", 80, Transport.TCP)
    for port in (0, 65536):
        with pytest.raises(InvalidArgumentError):
            await rig.ports.add("box", port, Transport.TCP)
