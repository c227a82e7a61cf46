"""Bridge and veth pairs, by rtnetlink(7). All functions block for some milliseconds.

pyroute2 takes 0.2 s to import, so it is imported by the first sandbox that has a network.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from arcbox_guest import linux
from arcbox_guest.errors import ConflictError
from arcbox_guest.network.addresses import LINK_PREFIX, gateway_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from ipaddress import IPv4Network

    from pyroute2 import IPRoute

    from arcbox_guest.network.addresses import Lease

INSIDE: Final = "eth0"
"""A sandbox's end of its pair."""


def add_bridge(name: str, network: IPv4Network) -> None:
    """Make the bridge, or bring the one that is there into the state that it should have.

    Raises:
        ConflictError: another interface has an address in its network: answers to sandboxes would go there.
        OSError: it can't be made.
    """
    with _routing_socket() as netlink:
        index = _find(netlink, name)
        _check_unused(netlink, network, index)
        if index is None:
            netlink.link("add", ifname=name, kind="bridge")
            index = _find(netlink, name)
        gateway = str(gateway_of(network))
        addresses = {message.get_attr("IFA_ADDRESS") for message in netlink.get_addr(index=index)}
        if gateway not in addresses:
            netlink.addr("add", index=index, address=gateway, prefixlen=network.prefixlen)
        netlink.link("set", index=index, state="up")


def _check_unused(netlink: IPRoute, network: IPv4Network, bridge: int | None) -> None:
    """Docker takes networks for its own from the same range, but none that an interface has already."""
    for message in netlink.get_addr(family=socket.AF_INET):
        other = IPv4Interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
        if message["index"] != bridge and other.network.overlaps(network):
            owner = message.get_attr("IFA_LABEL")
            raise ConflictError(f"{network} is in use: {owner} has {other}; the setting network.subnet has others")


def connect(lease: Lease, bridge: str, namespace: int) -> None:
    """Give a network namespace an interface with the lease's address.

    Args:
        lease: the address.
        bridge: the name of the bridge that it is connected to.
        namespace: a file descriptor of the network namespace.
    """
    with _routing_socket() as netlink:
        stale = _find(netlink, lease.link)
        if stale is not None:  # of a sandbox that a killed agent was creating
            netlink.link("delete", index=stale)
        peer = {"ifname": INSIDE, "net_ns_fd": namespace}
        master = _find(netlink, bridge)
        netlink.link("add", ifname=lease.link, kind="veth", master=master, state="up", peer=peer)
    with _routing_socket(namespace) as netlink:
        index = _find(netlink, INSIDE)
        netlink.addr("add", index=index, address=str(lease.address), prefixlen=lease.network.prefixlen)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="default", gateway=str(lease.gateway))


def disconnect(lease: Lease) -> None:
    """Remove a pair. It goes with its namespace as well, but the kernel takes its time for that."""
    with _routing_socket() as netlink:
        index = _find(netlink, lease.link)
        if index is not None:
            netlink.link("delete", index=index)


def remove_others(bridge: str, in_use: Container[str]) -> list[str]:
    """Remove the links of sandboxes that are gone; returns their names.

    Args:
        bridge: only links of this bridge are looked at.
        in_use: the names of the links that stay.
    """
    with _routing_socket() as netlink:
        master = _find(netlink, bridge)
        if master is None:
            return []
        found = {
            str(message.get_attr("IFLA_IFNAME")): int(message["index"])
            for message in netlink.get_links()
            if message.get_attr("IFLA_MASTER") == master
        }
        stale = [name for name in found if name.startswith(LINK_PREFIX) and name not in in_use]
        for name in stale:
            netlink.link("delete", index=found[name])
        return stale


def _find(netlink: IPRoute, name: str) -> int | None:
    found: list[int] = netlink.link_lookup(ifname=name)
    return found[0] if found else None


@contextmanager
def _routing_socket(namespace: int | None = None) -> Iterator[IPRoute]:
    """A routing socket of a network namespace, the guest's by default; errors of the kernel are OSErrors."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  see the module's docstring

    try:
        if namespace is None:
            netlink = IPRoute()
        else:
            with linux.in_network(namespace):  # a socket stays in the namespace that it was made in
                netlink = IPRoute()
        with netlink:
            yield netlink
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
