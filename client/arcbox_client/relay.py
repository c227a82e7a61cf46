"""A Unix socket of this machine whose connections are relayed to a port of the guest."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from arcbox_client._background import beside
from arcbox_client._byte_streams import connect_socket
from arcbox_client.addresses import UnixAddress, VsockAddress, parse_address
from arcbox_client.errors import AgentError, InvalidAddressError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_client.addresses import Address

_CONNECT_WITHIN = 10.0
_PIECE = 64 * 1024


def on_port(agent: str, endpoint: str) -> Address:
    """Where an endpoint of the guest, `vsock:PORT`, is for this machine: the agent's own address with another port.

    Raises:
        InvalidAddressError: it is no such endpoint, or the agent's address has no ports.
    """
    family, _, port = endpoint.partition(":")
    address = parse_address(agent)
    if family != "vsock" or not port.isdecimal():
        raise InvalidAddressError(f"{endpoint!r} is no vsock endpoint")
    if isinstance(address, UnixAddress) and address.port is None:
        raise InvalidAddressError(f"{agent} is the agent's own socket, beside which there is no port {port}")
    if isinstance(address, VsockAddress):
        return VsockAddress(address.cid, int(port))
    return evolve(address, port=int(port))


@asynccontextmanager
async def relay_from(path: str, address: Address) -> AsyncIterator[None]:
    """Listen on a Unix socket for as long as the context lasts, and relay its connections to an address.

    Only this user may connect. A connection that can't be made there is closed.
    """
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(path)
        os.chmod(path, 0o600)  # noqa: PTH101  pathlib would have it be async
        listening.listen(64)
        async with beside(partial(trio.serve_listeners, partial(_relay, address), [trio.SocketListener(listening)])):
            yield


async def _relay(address: Address, near: trio.SocketStream) -> None:
    async with near:
        try:
            far = trio.SocketStream(trio.socket.from_stdlib_socket(await connect_socket(address, _CONNECT_WITHIN)))
        except AgentError:
            return
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, near, far)
            nursery.start_soon(_copy, far, near)


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    """Copy until the end, and hand that on: either direction may end first."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(_PIECE):
            await target.send_all(data)
        await target.send_eof()
