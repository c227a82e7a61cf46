"""The guest's packet filter, as far as it concerns sandboxes: one nftables table of our own.

Nobody else's rules are touched, but one is added where iptables has a policy of dropping what is forwarded, which
dockerd sets: an accept in one table does not save a packet from a drop in another.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from arcbox_guest.errors import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from ipaddress import IPv4Network

TABLE: Final = "arcbox"

_LINK_LOCAL: Final = "169.254.0.0/16"
"""Where clouds have their metadata service: credentials of the guest, which are none of a sandbox's business."""

_RULES: Final = """\
table inet {table}
delete table inet {table}
table inet {table} {{
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname "{bridge}" ip saddr != {network} drop
        iifname "{bridge}" ip daddr {link_local} drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{bridge}" ip saddr != {network} drop
        iifname "{bridge}" ip daddr {link_local} drop
        iifname != "{bridge}" oifname "{bridge}" ct state established,related accept
        iifname != "{bridge}" oifname "{bridge}" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {network} oifname != "{bridge}" masquerade
    }}
}}
"""
_CHAINS: Final = 3
_RULE_COUNT: Final = 7

_PATIENCE: Final = 10.0
"""Seconds for one call of nft or iptables; they wait for each other's locks."""


@frozen
class PacketFilter:
    """The rules for one bridge."""

    bridge: str
    network: IPv4Network

    async def restore(self) -> None:
        """Put the rules in, in place of what may be left of them; others never see a moment without them.

        Raises:
            NotSupportedError: nft is not installed, or can't do it.
        """
        rules = _RULES.format(table=TABLE, bridge=self.bridge, network=self.network, link_local=_LINK_LOCAL)
        await _run(["nft", "-f", "-"], stdin=rules.encode())

    async def is_whole(self) -> bool:
        """Whether the rules are still there: who reloads a firewall often flushes all tables."""
        try:
            listing = json.loads(await _run(["nft", "--json", "list", "table", "inet", TABLE]))["nftables"]
        except NotSupportedError:
            return False
        return sum("chain" in part for part in listing) == _CHAINS and sum("rule" in part for part in listing) == (
            _RULE_COUNT
        )

    async def pass_iptables(self) -> None:
        """Let what comes from sandboxes, and answers to them, pass a FORWARD chain that drops by policy."""
        if not shutil.which("iptables"):
            return
        if "-P FORWARD DROP" not in (await _run(["iptables", "-w", "-S", "FORWARD"])).decode():
            return
        answers = ["-o", self.bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]
        for rule in (["-i", self.bridge, "-j", "ACCEPT"], answers):
            try:
                await _run(["iptables", "-w", "-C", "FORWARD", *rule])
            except NotSupportedError:
                await _run(["iptables", "-w", "-I", "FORWARD", *rule])


async def watch_removals(act: Callable[[], Awaitable[None]]) -> None:
    """Call a function whenever anybody has removed tables, chains or rules of nftables; `restore` does so as well.

    Raises:
        OSError: this kernel has no nftables.
    """
    netlink = trio.socket.from_stdlib_socket(
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    )
    with netlink:
        await netlink.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        while True:
            try:
                removed = any(kind in _REMOVALS for kind in _types(await netlink.recv(1 << 16)))
            except OSError:  # ENOBUFS: there were too many to be told
                removed = True
            if removed:
                await act()


_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_NFNL_SUBSYS_NFTABLES: Final = 10
_REMOVALS: Final = frozenset({2, 5, 8})
"""NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN and NFT_MSG_DELRULE; linux/netfilter/nf_tables.h."""


def _types(data: bytes) -> Iterator[int]:
    """The kinds of the messages in a datagram: struct nlmsghdr, netlink(7)."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind >> 8 == _NFNL_SUBSYS_NFTABLES:
            yield kind & 0xFF
        data = data[max(16, (length + 3) & ~3) :]


async def _run(command: Sequence[str], stdin: bytes = b"") -> bytes:
    try:
        with trio.fail_after(_PATIENCE):
            completed = await trio.run_process(
                command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False, start_new_session=True
            )
    except FileNotFoundError as error:
        raise NotSupportedError(f"the network of sandboxes needs {command[0]}, and it is not installed") from error
    except trio.TooSlowError as error:
        raise NotSupportedError(f"{command[0]} did not end in {_PATIENCE:.0f} seconds") from error
    if completed.returncode:
        lines = completed.stderr.decode(errors="replace").strip().splitlines() or ["it does not say why"]
        raise NotSupportedError(f"{' '.join(command[:2])} failed: {lines[0]}")
    return bytes(completed.stdout)
