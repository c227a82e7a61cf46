"""The agent's life: start, listen, serve, stop."""

from __future__ import annotations

import gc
import itertools
import logging
import signal
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_agent import vsock_cid
from arcbox_agent.addresses import VsockAddress, parse_address
from arcbox_agent.connection import Connection, send_away
from arcbox_agent.guest_setup import build_guest
from arcbox_agent.listeners import guarded, listen_patiently
from arcbox_agent.notify import Notifier
from arcbox_agent.passed_listeners import passed_listeners
from arcbox_agent.proxies import build_proxies
from arcbox_agent.reader import ReadCount
from arcbox_agent.services import supervise
from arcbox_agent.settings import BUILT_IN
from arcbox_agent.transport import SocketTransport
from arcbox_guest import system
from arcbox_handlers import Context, default_registry
from arcbox_protocol import ErrorReply, MessageType, __version__, encode_frame
from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from arcbox_agent.addresses import Address
    from arcbox_agent.listeners import Peer, SocketListener
    from arcbox_agent.settings import LoadedSettings, Settings
    from arcbox_guest import Guest
    from arcbox_handlers import Registry

log = logging.getLogger(__name__)

_SENT_AWAY_AT_A_TIME = 64
"""Refused peers that get a second to read why, at the same time; the connections of more are closed at once."""

_ACCEPTS_IN_A_ROW = 16
"""Connections accepted without waiting before those that are there get their turn."""

_SANDBOX_GRACE = 1.0
"""Seconds that sandboxes get at least to stop by themselves, if the requests took all of `shutdown_grace`."""

_OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""gc threshold: the allocations of a few hundred requests, which reference counting frees."""


def serve(loaded: LoadedSettings) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit status.

    Sockets that systemd passed stand in for the default address, and come beside those that somebody chose.

    Raises:
        PassedListenerError: systemd passed a socket that can't be served on.
    """
    raise_file_limit()
    passed = passed_listeners()
    settings = loaded.settings
    addresses = _besides(passed, loaded)
    trio.run(_serve, Server(settings, build_guest(settings), default_registry(), addresses, passed))
    return 0


def _besides(passed: Sequence[SocketListener], loaded: LoadedSettings) -> list[Address]:
    """The addresses to listen on that were not passed; none if nobody chose them."""
    if passed and loaded.origins["listen"] == BUILT_IN:
        return []
    there = {listener.address for listener in passed}
    return [address for address in map(parse_address, loaded.settings.listen) if address not in there]


async def _serve(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_settle, server)
        await server.run()
        nursery.cancel_scope.cancel()


async def _settle(server: Server) -> None:
    """Import what the first ping does not need; then have the garbage collector scan new objects only."""
    await server.ready.wait()
    await supervise("warm-up", partial(trio.to_thread.run_sync, system.warm_up))
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 10, 10)


def raise_file_limit() -> None:
    """Allow as many open files as this process may: each connection is one."""
    import resource  # noqa: PLC0415  an extension module that only this needs

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@define(eq=False)
class Server:
    """Accepts connections, and runs the services that live beside them."""

    _settings: Settings
    _guest: Guest
    _registry: Registry
    _addresses: Sequence[Address]
    """Where to listen."""

    _passed: Sequence[SocketListener] = ()
    """Sockets that listen already."""

    _notifier: Notifier = field(factory=Notifier.from_environ, kw_only=True)
    ready: trio.Event = field(init=False, factory=trio.Event)
    """Set when the first address is listened on."""

    _context: Context = field(init=False)
    _missing: set[Address] = field(init=False)
    """The addresses that nobody could listen on until now."""

    _open: set[Connection] = field(init=False, factory=set)
    _read_count: ReadCount = field(init=False, factory=ReadCount)
    _sent_away: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._context = Context(guest=self._guest, version=__version__)
        self._missing = set(self._addresses)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then finish what runs, within `shutdown_grace`. A second one ends that.

        Sandboxes go on running, for the next agent, or are stopped last: the setting `sandbox.stop_at_exit`.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as services:
                self._start_services(services)
                async with trio.open_nursery() as connections:
                    await self._listen(connections, signals)
                    finishing = connections.cancel_scope
                    services.start_soon(self._hurry_at_signal, signals, finishing)
                    finishing.deadline = trio.current_time() + self._settings.shutdown_grace
                    for connection in self._open:
                        connection.drain()
                if self._settings.sandbox.stop_at_exit:
                    self._notifier.tell(STATUS="stopping sandboxes")
                    await self._guest.sandboxes.stop_all(max(_SANDBOX_GRACE, finishing.deadline - trio.current_time()))
                services.cancel_scope.cancel()
        log.info("stopped")

    async def _listen(self, connections: trio.Nursery, signals: AsyncIterator[int]) -> None:
        """Accept connections until the first signal."""
        with ExitStack() as stack:
            for passed in self._passed:
                stack.callback(passed.close)
            async with trio.open_nursery() as listeners:
                self._start_listeners(listeners, connections)
                await _next_signal(signals)
                self._notifier.tell(STOPPING="1", STATUS="finishing requests")
                listeners.cancel_scope.cancel()

    def _start_services(self, services: trio.Nursery) -> None:
        guest, settings = self._guest, self._settings
        running: dict[str, Callable[[], Awaitable[None]]] = {
            "watchdog": self._notifier.beat,
            "power": guest.power.run,
            "sandboxes": guest.sandboxes.run,
            "ports of sandboxes": guest.ports.run,
            "container runtime": guest.runtime.run,
            "containers": guest.runtime.containers.run,
            "Kubernetes": guest.kubernetes.run,
            "disk trim": partial(guest.disks.trim_periodically, settings.disk.trim_interval),
        }
        if guest.network is not None:
            running["network of sandboxes"] = guest.network.run
        if guest.images is not None:
            running["unused images"] = partial(
                guest.images.collect_periodically, settings.images.keep_unused, guest.sandboxes.images_in_use
            )
        running |= {f"proxy {proxy.name}": proxy.run for proxy in build_proxies(settings)}
        for name, service in running.items():
            services.start_soon(supervise, name, service, name=name)

    async def _hurry_at_signal(self, signals: AsyncIterator[int], finishing: trio.CancelScope) -> None:
        await _next_signal(signals)
        finishing.cancel()
        if self._settings.sandbox.stop_at_exit:
            await self._guest.sandboxes.stop_all(0)

    def _start_listeners(self, listeners: trio.Nursery, connections: trio.Nursery) -> None:
        if self._passed:
            self._note_listening(*(listener.address for listener in self._passed))
        for passed in self._passed:
            service = partial(self._accept_from, passed, connections)
            listeners.start_soon(supervise, f"listener {passed.address}", service)
        for address in self._addresses:
            service = partial(self._listen_on, address, connections)
            listeners.start_soon(supervise, f"listener {address}", service)

    async def _listen_on(self, address: Address, connections: trio.Nursery) -> None:
        with closing(await listen_patiently(address)) as listener:
            self._note_listening(address)
            await self._accept_from(listener, connections)

    async def _accept_from(self, listener: SocketListener, connections: trio.Nursery) -> None:
        guard = guarded(listener, self._settings.vsock.allowed_cids)
        for number in itertools.count(1):
            connected, peer = await guard.accept()
            self._admit(connected, peer, connections)
            if number % _ACCEPTS_IN_A_ROW == 0:
                await trio.lowlevel.checkpoint()

    def _note_listening(self, *addresses: Address) -> None:
        """Tell what is listened on. The agent is ready with the first address: others may have to be waited for."""
        for address in addresses:
            log.info("listening", extra={"listener": str(address), "version": __version__})
            if isinstance(address, VsockAddress) and not vsock_cid.is_reachable():
                why = f"this guest has no CID; is the module {vsock_cid.TRANSPORT} loaded?"
                log.warning("no host can connect", extra={"listener": str(address), "reason": why})
            self._missing.discard(address)
        all_addresses = [*(listener.address for listener in self._passed), *self._addresses]
        status = f"listening on {', '.join(str(address) for address in all_addresses if address not in self._missing)}"
        if self._missing:
            status += f"; not yet on {', '.join(str(address) for address in all_addresses if address in self._missing)}"
        if self.ready.is_set():
            self._notifier.tell(STATUS=status)
        else:
            self.ready.set()
            self._notifier.tell(READY="1", STATUS=status)

    def _admit(self, connected: socket.socket, peer: Peer, connections: trio.Nursery) -> None:
        transport = SocketTransport(connected)
        if len(self._open) < self._settings.limits.max_connections:
            connection = Connection(
                transport, self._registry, self._context, self._settings.limits, peer.description, self._read_count
            )
            self._open.add(connection)
            connections.start_soon(self._serve, connection, name=peer.description)
        elif self._sent_away < _SENT_AWAY_AT_A_TIME:
            self._sent_away += 1
            connections.start_soon(self._send_away, transport, name=peer.description)
        else:
            with suppress(trio.BrokenResourceError):
                transport.send_nowait([encode_frame(MessageType.Error, "", self._refusal().encode())])
            transport.close()

    def _refusal(self) -> ErrorReply:
        limit = self._settings.limits.max_connections
        return ErrorReply(ErrorCode.UNAVAILABLE, f"all {limit} connections are in use")

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._open.discard(connection)

    async def _send_away(self, transport: SocketTransport) -> None:
        try:
            with suppress(trio.BrokenResourceError):
                await send_away(transport, self._refusal())
        finally:
            transport.close()
            self._sent_away -= 1


async def _next_signal(signals: AsyncIterator[int]) -> None:
    async for number in signals:
        log.info("stopping", extra={"signal": signal.Signals(number).name})
        return
