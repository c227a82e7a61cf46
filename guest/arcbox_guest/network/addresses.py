"""Which sandbox has which address."""

from __future__ import annotations

from collections import deque
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from arcbox_guest.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv4Network

QUARANTINE: Final = 30.0
"""Seconds before an address is used again: peers may still have connections to, and ARP entries of, its last owner."""


@frozen
class Lease:
    """The address of a sandbox, and how to reach others from there. As text: address/prefix, as in 172.20.0.2/16."""

    address: IPv4Address
    network: IPv4Network

    @classmethod
    def parse(cls, text: str) -> Lease:
        """The lease that `str` has made a text of.

        Raises:
            ValueError: it is none.
        """
        interface = IPv4Interface(text)
        return cls(interface.ip, interface.network)

    def __str__(self) -> str:
        return f"{self.address}/{self.network.prefixlen}"

    @property
    def gateway(self) -> IPv4Address:
        """The bridge, which is the first host of the network."""
        return gateway_of(self.network)

    @property
    def link(self) -> str:
        """The guest's end of the veth pair; an interface's name has at most 15 bytes."""
        return f"{LINK_PREFIX}{int(self.address):08x}"


ZONE: Final = "arcbox.local"
"""The parent of all names of sandboxes; nothing below it is ever asked elsewhere."""

LINK_PREFIX: Final = "arcb-"
"""Of the names of all links of sandboxes."""


def gateway_of(network: IPv4Network) -> IPv4Address:
    """The address of the bridge."""
    return network.network_address + 1


@define(eq=False)
class AddressPool:
    """Gives addresses in turn, so that one that was returned stays unused for as long as possible."""

    network: IPv4Network
    _now: Callable[[], float]
    """Seconds of a monotonic clock."""

    _next: int = field(init=False, default=0)
    """How many addresses were given that nobody ever had before."""

    _in_use: set[IPv4Address] = field(init=False, factory=set)
    _returned: deque[tuple[float, IPv4Address]] = field(init=False, factory=deque)
    """When and which, the oldest first."""

    def lease(self) -> Lease:
        """An address that nobody has.

        Raises:
            UnavailableError: all are in use, or were a moment ago.
        """
        address = self._unused() or self._rested()
        if address is None:
            raise UnavailableError(f"all addresses of {self.network} are in use: remove sandboxes, or wait a little")
        self._in_use.add(address)
        return Lease(address, self.network)

    def claim(self, lease: Lease) -> None:
        """Count a lease as given that a sandbox has already: a previous agent gave it.

        Raises:
            UnavailableError: it isn't one of this network, or another sandbox has it.
        """
        usable = lease.network == self.network and lease.address in _Hosts(self.network)
        if not usable or lease.address in self._in_use:
            raise UnavailableError(f"address {lease} can't be claimed: it is not a free one of {self.network}")
        self._in_use.add(lease.address)

    def release(self, lease: Lease) -> None:
        """Take an address back. Again does nothing."""
        if lease.address in self._in_use:
            self._in_use.remove(lease.address)
            self._returned.append((self._now(), lease.address))

    def _unused(self) -> IPv4Address | None:
        hosts = _Hosts(self.network)
        while self._next < len(hosts):
            address = hosts[self._next]
            self._next += 1
            if address not in self._in_use:  # it may have been claimed
                return address
        return None

    def _rested(self) -> IPv4Address | None:
        while self._returned and self._returned[0][0] + QUARANTINE <= self._now():
            address = self._returned.popleft()[1]
            if address not in self._in_use:
                return address
        return None


@frozen
class _Hosts:
    """The addresses of a network that sandboxes can have: all but its own, the gateway's and the broadcast address."""

    network: IPv4Network

    def __len__(self) -> int:
        return max(0, self.network.num_addresses - 3)

    def __getitem__(self, index: int) -> IPv4Address:
        return self.network.network_address + 2 + index

    def __contains__(self, address: IPv4Address) -> bool:
        return gateway_of(self.network) < address < self.network.broadcast_address
