"""Ports of the guest that lead to ports of sandboxes.

Whatever connects is connected to the sandbox's loopback, from inside of its network namespace: what listens there is
reached, with or without a network of its own. A forwarding ends with its sandbox. With the agent end its connections:
the next agent forwards the same port again.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.errors import (
    GuestError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from arcbox_guest.linux import in_network
from arcbox_guest.relay import SocketPair
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.model import Forward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_guest.sandboxes.manager import SandboxManager

log = logging.getLogger(__name__)

PORTS: Final = range(40_000, 50_000)
"""Of the guest, for forwardings."""

_LOOPBACK: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_BACKLOG: Final = 1024
_THREADS: Final = 16
"""Sockets that are made at a time."""

_CONNECT_WITHIN: Final = 10.0
"""Seconds for a listener inside to accept a connection."""

_RETRY: Final = 0.1
"""Seconds after a failure to accept, of which the next attempt knows nothing: too many open files, say."""

_OPENED_AGAIN: Final = 0.5
"""Seconds after which it is looked again for what former agents forwarded, while another agent has the sandboxes."""

_UDP_IDLE: Final = 60.0
"""Seconds after the last datagram, either way, for which answers find their way back; as conntrack has it for UDP."""

_MOST_UDP_PEERS: Final = 1024
"""Of a forwarding; datagrams of more are dropped."""

_DATAGRAM: Final = 65_536


class Transport(Enum):
    """What is forwarded."""

    TCP = socket.SOCK_STREAM
    UDP = socket.SOCK_DGRAM


@frozen
class _Key:
    """What a forwarding is known by."""

    sandbox_id: str
    port: int
    transport: Transport


@define(eq=False)
class _Forwarding:
    """A port of the guest that is forwarded."""

    guest_port: int
    ending: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    """Set when the port is free again."""


@define(eq=False)
class _Peer:
    """Who sends datagrams to a forwarded port."""

    far: trio.socket.SocketType
    idle: trio.CancelScope = field(factory=trio.CancelScope)


_Peers = dict[tuple[str, int], _Peer]


@define(eq=False)
class PortForwards:
    """The forwarded ports of all sandboxes."""

    _manager: SandboxManager
    _forwardings: dict[_Key, _Forwarding] = field(init=False, factory=dict)
    _nursery: trio.Nursery | None = field(init=False, default=None)
    """None while `run` does not run."""

    _restored: trio.Event = field(init=False, factory=trio.Event)
    """Set when what former agents forwarded is forwarded again."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_THREADS))

    async def run(self) -> None:
        """Be the service behind `add`, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._restore(nursery)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._forwardings.clear()
            self._restored = trio.Event()

    async def add(self, sandbox_id: str, port: int, transport: Transport) -> int:
        """Forward a port of the guest to a sandbox's port; the same one if that is forwarded already.

        Returns:
            the guest's port, one of `PORTS`, on all of its IPv4 addresses.

        Raises:
            InvalidArgumentError: there is no such port.
            NotFoundError: there is no such sandbox.
            PreconditionError: it has not started, or has ended.
            UnavailableError: all ports are in use.
        """
        if not 0 < port < 2**16:
            raise InvalidArgumentError(f"{port} is no port: 1 to 65535")
        await self._manager.reach(sandbox_id, "its ports")
        if self._nursery is None:
            raise UnavailableError("no port can be forwarded: the agent is ending, or its log says why")
        nursery = self._nursery
        await self._restored.wait()
        key = _Key(sandbox_id, port, transport)
        if key not in self._forwardings:
            self._begin(nursery, key, _listen(transport, PORTS))
            guest_port = self._forwardings[key].guest_port
            await self._record(sandbox_id)
            return guest_port
        return self._forwardings[key].guest_port

    async def remove(self, sandbox_id: str, port: int, transport: Transport) -> None:
        """Forward a port no longer; connections that are open are closed.

        Raises:
            NotFoundError: it is not forwarded.
        """
        forwarding = self._forwardings.pop(_Key(sandbox_id, port, transport), None)
        if forwarding is None:
            raise NotFoundError(f"{transport.name} port {port} of sandbox {sandbox_id[:80]!r} is not forwarded")
        forwarding.ending.cancel()
        await forwarding.ended.wait()
        await self._record(sandbox_id)

    async def _restore(self, nursery: trio.Nursery) -> None:
        """Forward again what former agents did, from the same ports."""
        while True:
            try:
                await self._manager.opened()
                break
            except UnavailableError:
                await trio.sleep(_OPENED_AGAIN)
        for sandbox in self._manager.list():
            for forward in sandbox.forwards if sandbox.state in states.ALIVE else ():
                key = _Key(sandbox.id, forward.port, Transport[forward.transport])
                try:
                    self._begin(nursery, key, _listen(key.transport, [forward.guest_port]))
                except UnavailableError as error:
                    extra = {"sandbox": sandbox.id, "port": forward.port, "reason": str(error)}
                    log.warning("port not forwarded again", extra=extra)
        self._restored.set()

    def _begin(self, nursery: trio.Nursery, key: _Key, listening: socket.socket) -> None:
        forwarding = self._forwardings[key] = _Forwarding(listening.getsockname()[1])
        nursery.start_soon(self._serve, key, forwarding, listening)

    async def _record(self, sandbox_id: str) -> None:
        forwards = tuple(
            Forward(key.port, key.transport.name, forwarding.guest_port)
            for key, forwarding in self._forwardings.items()
            if key.sandbox_id == sandbox_id
        )
        with suppress(NotFoundError):  # it was removed meanwhile
            await self._manager.set_forwards(sandbox_id, forwards)

    async def _serve(self, key: _Key, forwarding: _Forwarding, listening: socket.socket) -> None:
        """Forward, until that is taken back or the sandbox ends."""
        try:
            with forwarding.ending:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        self._accept if key.transport is Transport.TCP else self._receive, key, listening
                    )
                    with suppress(NotFoundError):
                        await self._manager.over(key.sandbox_id)
                    nursery.cancel_scope.cancel()
        except* Exception:
            log.exception("port no longer forwarded", extra={"sandbox": key.sandbox_id, "port": key.port})
        finally:
            listening.close()
            forwarding.ended.set()
            if self._forwardings.get(key) is forwarding:
                del self._forwardings[key]

    async def _accept(self, key: _Key, listening: socket.socket) -> None:
        listener = trio.socket.from_stdlib_socket(listening)
        async with trio.open_nursery() as relays:
            while True:
                try:
                    accepted, _ = await listener.accept()
                except OSError:
                    await trio.sleep(_RETRY)
                    continue
                relays.start_soon(self._relay, key, _plain(accepted), relays)

    async def _relay(self, key: _Key, near: socket.socket, relays: trio.Nursery) -> None:
        try:
            far = await self._connect(key)
        except (OSError, GuestError, trio.TooSlowError) as error:
            log.debug("forwarding can't connect", extra={"sandbox": key.sandbox_id, "reason": str(error)})
            near.close()  # as a refused connection looks behind any port that is forwarded by a process
        except BaseException:
            near.close()
            raise
        else:
            await SocketPair(near, far, _nothing).relay(relays)

    async def _connect(self, key: _Key) -> socket.socket:
        """A socket that is connected to the sandbox's port.

        Raises:
            OSError: nothing listens there.
            GuestError: the sandbox has ended.
            trio.TooSlowError: what listens there accepts nothing.
        """
        refused = OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        for family, address in _LOOPBACK:
            connecting = trio.socket.from_stdlib_socket(await self._socket(key, family))
            try:
                with trio.fail_after(_CONNECT_WITHIN):
                    await connecting.connect((address, key.port))
            except OSError as error:
                connecting.close()
                refused = error
            except BaseException:
                connecting.close()
                raise
            else:
                return _plain(connecting)
        raise refused

    async def _socket(self, key: _Key, family: socket.AddressFamily) -> socket.socket:
        """A new socket, in the sandbox's network namespace."""

        def make() -> socket.socket:
            with self._manager.network_namespace(key.sandbox_id) as namespace, in_network(namespace):
                return socket.socket(family, key.transport.value)

        return await trio.to_thread.run_sync(make, limiter=self._limiter)

    async def _receive(self, key: _Key, listening: socket.socket) -> None:
        """Pass datagrams on, those of each peer by a socket of its own, so that answers find their way back."""
        near = trio.socket.from_stdlib_socket(listening)
        peers: _Peers = {}
        async with trio.open_nursery() as answers:
            while True:
                data, address = await near.recvfrom(_DATAGRAM)
                if address not in peers:
                    if len(peers) >= _MOST_UDP_PEERS:
                        continue
                    try:
                        far = await self._connect(key)
                    except (OSError, GuestError) as error:
                        log.debug("forwarding can't connect", extra={"sandbox": key.sandbox_id, "reason": str(error)})
                        continue
                    peers[address] = peer = _Peer(trio.socket.from_stdlib_socket(far))
                    answers.start_soon(self._answer, near, address, peers)
                peer = peers[address]
                peer.idle.deadline = trio.current_time() + _UDP_IDLE
                with suppress(OSError):  # what can't be sent now is lost, as datagrams are
                    await peer.far.send(data)

    async def _answer(
        self, near: trio.socket.SocketType, address: tuple[str, int], peers: dict[tuple[str, int], _Peer]
    ) -> None:
        peer = peers[address]
        try:
            with peer.idle:
                while True:
                    try:
                        data = await peer.far.recv(_DATAGRAM)
                    except OSError:  # nothing listens there, says the kernel of an earlier datagram
                        continue
                    peer.idle.deadline = trio.current_time() + _UDP_IDLE
                    with suppress(OSError):
                        await near.sendto(data, address)
        finally:
            peer.far.close()
            del peers[address]


def _listen(transport: Transport, ports: Sequence[int]) -> socket.socket:
    """A socket on a free port among some."""
    start = random.randrange(len(ports))  # noqa: S311  no secret: so that one that was just given up rests
    for port in (*ports[start:], *ports[:start]):
        listening = socket.socket(socket.AF_INET, transport.value)
        try:
            if transport is Transport.TCP:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("", port))
            if transport is Transport.TCP:
                listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE:
                raise UnavailableError(f"no port can be forwarded: {error.strerror}") from error
        else:
            listening.setblocking(False)
            return listening
    which = f"{ports[0]} to {ports[-1]} are all" if len(ports) > 1 else f"{ports[0]} is"
    raise UnavailableError(f"no port can be forwarded: {which} in use")


def _plain(opened: trio.socket.SocketType) -> socket.socket:
    """The same socket as the standard library has it."""
    plain = socket.socket(fileno=opened.detach())
    plain.setblocking(False)
    return plain


def _nothing() -> None:
    pass
