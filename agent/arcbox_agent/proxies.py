"""Raw relays: what connects to a port of the agent's speaks to the Docker or Kubernetes API, and sees no difference.

Not one byte is looked at. Each end may close its sending side and go on receiving (docker run -i, docker exec -i), so
the two directions of a connection end one by one.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_agent.addresses import UnixAddress, VsockAddress, parse_address, parse_target
from arcbox_agent.guest_setup import docker_vsock_port
from arcbox_agent.listeners import guarded, listen_patiently
from arcbox_guest.relay import SocketPair

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from arcbox_agent.addresses import Address, TcpAddress
    from arcbox_agent.settings import Settings

log = logging.getLogger(__name__)

_CONNECT_WITHIN: Final = 10.0
"""Seconds to wait for room in the backlog of a target, or for the answer of a TCP one."""

_RETRY: Final = 0.01


KUBERNETES_VSOCK_PORT: Final = 16443


@frozen
class Target:
    """What is connected to."""

    family: socket.AddressFamily
    address: str | tuple[str, int]

    @classmethod
    def at(cls, address: UnixAddress | TcpAddress) -> Target:
        """The target at an address."""
        if isinstance(address, UnixAddress):
            return cls(socket.AF_UNIX, address.path)
        return cls(socket.AF_INET6 if ":" in address.ip else socket.AF_INET, (address.ip, address.port))

    async def connect(self) -> socket.socket:
        """A connected socket, which does not block.

        Raises:
            OSError: nobody accepts connections there.
            trio.TooSlowError: somebody does, but not now.
        """
        connecting = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            number = connecting.connect_ex(self.address)
            if number:
                with trio.fail_after(_CONNECT_WITHIN):
                    await self._finish(connecting, number)
        except BaseException:
            connecting.close()
            raise
        return connecting

    async def _finish(self, connecting: socket.socket, number: int) -> None:
        while number == errno.EAGAIN:  # a Unix socket whose backlog is full: there is nothing to wait for
            await trio.sleep(_RETRY)
            number = connecting.connect_ex(self.address)
        if number == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(connecting)
            number = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        await trio.lowlevel.checkpoint_if_cancelled()
        if number:
            raise OSError(number, os.strerror(number))


@define(eq=False)
class Proxy:
    """Listens, and relays each connection to a target of its own."""

    name: str
    """For the log."""

    _addresses: Sequence[Address]
    _target: Target
    _allowed_cids: Container[int]
    open: int = field(init=False, default=0)
    """Connections at the moment."""

    async def run(self) -> None:
        """Relay, for ever."""
        async with trio.open_nursery() as relays:
            for address in self._addresses:
                relays.start_soon(self._listen, address, relays)

    async def _listen(self, address: Address, relays: trio.Nursery) -> None:
        listener = guarded(await listen_patiently(address), self._allowed_cids)
        try:
            log.info("proxy listening", extra={"proxy": self.name, "listener": str(address)})
            while True:
                accepted, _peer = await listener.accept()
                relays.start_soon(self._relay, accepted, relays)
                await trio.lowlevel.checkpoint()
        finally:
            listener.close()

    async def _relay(self, near: socket.socket, relays: trio.Nursery) -> None:
        """From here to there; and, as a task of its own, the other way round. The last of both closes the sockets."""
        with ExitStack() as closing:
            closing.callback(near.close)
            near.setblocking(False)
            try:
                far = await self._target.connect()
            except (OSError, trio.TooSlowError) as error:
                log.info("proxy can't connect", extra={"proxy": self.name, "reason": str(error)})
                return
            closing.pop_all()
        self.open += 1
        await SocketPair(near, far, self._closed).relay(relays)

    def _closed(self) -> None:
        self.open -= 1


def build_proxies(settings: Settings) -> list[Proxy]:
    """The proxies that the settings want."""
    over_vsock = any(isinstance(parse_address(address), VsockAddress) for address in settings.listen)
    routes = (
        ("docker", settings.proxy.docker, docker_vsock_port(), f"unix:{settings.runtime.docker_socket}"),
        ("kubernetes", settings.proxy.kubernetes, KUBERNETES_VSOCK_PORT, ""),
    )
    proxies = []
    for name, route, port, default_target in routes:
        texts = [text for text in route.listen if text != "auto"]
        addresses = [parse_address(text) for text in texts]
        if "auto" in route.listen and over_vsock:
            addresses.append(VsockAddress(port))
        if addresses:
            target = Target.at(parse_target(route.target or default_target))
            proxies.append(Proxy(name, addresses, target, settings.vsock.allowed_cids))
    return proxies
