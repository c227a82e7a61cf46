"""The service that gives sandboxes their network."""

from __future__ import annotations

import logging
import socket
import time
from functools import partial
from importlib import import_module
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, field, frozen

from arcbox_guest.errors import GuestError, NotSupportedError
from arcbox_guest.network import links, packet_filter
from arcbox_guest.network.addresses import ZONE, AddressPool, gateway_of
from arcbox_guest.network.packet_filter import PacketFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arcbox_guest.network.addresses import Lease
    from arcbox_guest.runtime.containers import ContainerWatch

T = TypeVar("T")

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
"""Threads that wait for the kernel's routing lock; more would only wait."""

_SERVER_PATIENCE: Final = 5.0
"""Seconds for which the first sandbox waits for the DNS server."""

_IPTABLES_INTERVAL: Final = 10.0
"""Seconds between looks at iptables' policy, whose changes nobody tells: dockerd sets it whenever it starts."""


@frozen(kw_only=True)
class NetworkSettings:
    """How the network of sandboxes shall be."""

    bridge: str = "arcbox0"
    subnet: IPv4Network = field(factory=lambda: IPv4Network("172.20.0.0/16"))
    dns: tuple[str, ...] = ()
    """The servers that are asked for names that are no sandbox's; none means the guest's own."""

    dns_server: bool = True
    """Whether sandboxes find each other by name: they ask the bridge's address then."""


@define(eq=False)
class SandboxNetwork:
    """Addresses, links and rules. Nothing of it is made before the first sandbox wants it."""

    settings: NetworkSettings
    _containers: ContainerWatch
    """Whose names sandboxes may look for as well."""

    _pool: AddressPool = field(init=False)
    _filter: PacketFilter = field(init=False)
    _leases: dict[str, Lease] = field(init=False, factory=dict)
    """By the ids of their sandboxes."""

    _ready: bool = field(init=False, default=False)
    _preparing: trio.Lock = field(init=False, factory=trio.Lock)
    _wanted: trio.Event = field(init=False, factory=trio.Event)
    """Set when the rules are in."""

    _serving: trio.Event = field(init=False, factory=trio.Event)
    """Set when the DNS server answers."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    def __attrs_post_init__(self) -> None:
        self._pool = AddressPool(self.settings.subnet, time.monotonic)
        self._filter = PacketFilter(self.settings.bridge, self.settings.subnet)

    def lease(self, sandbox_id: str) -> Lease:
        """An address for a new sandbox, to be released.

        Raises:
            UnavailableError: none is free.
        """
        lease = self._leases[sandbox_id] = self._pool.lease()
        return lease

    def claim(self, sandbox_id: str, lease: Lease) -> None:
        """Count the lease of a sandbox of a previous agent as given.

        Raises:
            UnavailableError: the network does not have this address, or another sandbox has it.
        """
        self._pool.claim(lease)
        self._leases[sandbox_id] = lease

    def addresses_of(self, name: str) -> Sequence[IPv4Address]:
        """The address of the sandbox with a name, its id; else those of a container. In lower case, as names in DNS."""
        found = [lease.address for owner, lease in self._leases.items() if owner.lower() == name]
        return found or self._containers.addresses_of(name)

    async def connect(self, lease: Lease, namespace: int) -> None:
        """Connect a network namespace, given as a file descriptor, which gets the address of the lease.

        Raises:
            NotSupportedError: this machine can't do that.
            GuestError: it failed.
        """
        await self._prepare()
        await self._call(partial(links.connect, lease, self.settings.bridge, namespace))

    async def release(self, sandbox_id: str) -> None:
        """Remove the link of a sandbox and take its address back. Again does nothing."""
        lease = self._leases.get(sandbox_id)
        if lease is None:
            return
        try:
            # One that was taken over has a link which this agent has not made: the kernel is asked for it.
            if lease.link in {name for _, name in socket.if_nameindex()}:
                await self._call(partial(links.disconnect, lease))
        finally:
            self._pool.release(lease)
            del self._leases[sandbox_id]

    async def sweep(self) -> None:
        """Remove the links of sandboxes that a killed agent has left behind, those without a lease.

        Raises:
            GuestError: it failed.
        """
        names = frozenset(lease.link for lease in self._leases.values())
        if not names and self.settings.bridge not in {name for _, name in socket.if_nameindex()}:
            return
        for name in await self._call(partial(links.remove_others, self.settings.bridge, names)):
            log.warning("link of a sandbox that is gone removed", extra={"link": name})
        await self._prepare()

    async def run(self) -> None:
        """Put our rules back whenever somebody has removed them."""
        await self._wanted.wait()
        async with trio.open_nursery() as nursery:
            if self.settings.dns_server:
                nursery.start_soon(self._serve_names)
            nursery.start_soon(packet_filter.watch_removals, self._restore_rules)
            nursery.start_soon(self._watch_iptables)

    async def _restore_rules(self) -> None:
        if not await self._filter.is_whole():
            log.warning("rules of the sandboxes' network were removed: putting them back")
            await self._filter.restore()

    async def _serve_names(self) -> None:
        self._containers.want()
        dns_server = await trio.to_thread.run_sync(import_module, "arcbox_guest.network.dns_server")
        server = dns_server.DnsServer(
            address=gateway_of(self.settings.subnet),
            network=self.settings.subnet,
            lookup=self.addresses_of,
            upstream=partial(upstream_servers, self.settings),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            self._serving.set()

    def resolver(self) -> list[str]:
        """The lines of sandboxes' resolv.conf, resolv.conf(5): with our server, the id of another one is enough."""
        if self.settings.dns_server:
            return [f"search {ZONE}", f"nameserver {gateway_of(self.settings.subnet)}"]
        return [f"nameserver {server}" for server in upstream_servers(self.settings)]

    async def _watch_iptables(self) -> None:
        while True:
            await trio.sleep(_IPTABLES_INTERVAL)
            await self._filter.pass_iptables()

    async def _prepare(self) -> None:
        async with self._preparing:
            if self._ready:
                return
            await self._call(partial(links.add_bridge, self.settings.bridge, self.settings.subnet))
            await self._call(_forward_packets)
            await self._filter.restore()
            await self._filter.pass_iptables()
            self._ready = True
            self._wanted.set()
            if self.settings.dns_server:
                with trio.move_on_after(_SERVER_PATIENCE):  # what runs in the first sandbox may look for a name at once
                    await self._serving.wait()

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(function, limiter=self._limiter)
        except ImportError as error:
            raise NotSupportedError("the network of sandboxes needs the Python package pyroute2") from error
        except OSError as error:
            raise GuestError(f"the network of a sandbox can't be set up: {error.strerror or error}") from error


def _forward_packets() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def upstream_servers(settings: NetworkSettings, resolv_conf: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Who is asked for names that are no sandbox's: as set, or the guest's own servers.

    Its loopback addresses are left out where sandboxes ask for themselves: those mean nothing to them.
    """
    if settings.dns:
        return list(settings.dns)
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return [server for server in servers if settings.dns_server or not ip_address(server).is_loopback]
