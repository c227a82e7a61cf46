"""A DNS server on the bridge: names of sandboxes are answered here, all others by the guest's own servers.

dnspython takes 0.1 s to import: import this module when the server is to start, in a thread.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field
from dns import exception, flags, message, opcode, rcode, rdatatype, rrset

from arcbox_guest.network.addresses import ZONE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from ipaddress import IPv4Network

    from dns.message import Message, QueryMessage
    from trio.socket import SocketType

log = logging.getLogger(__name__)

PORT: Final = 53

_TTL: Final = 5
"""Seconds for which an answer may be cached: a name may belong to another sandbox soon."""

_UPSTREAM_TIMEOUT: Final = 2.0
"""Seconds that one upstream server has."""

_TCP_IDLE: Final = 10.0
"""Seconds that a client on TCP may be silent (RFC 7766, 6.2.3)."""

_QUERIES: Final = 256
"""That are answered at a time; more over UDP are dropped, as by a queue that is full."""

_ADDRESSES: Final = 16
"""Of one name in an answer: so many fit into 512 bytes, which is all of UDP without EDNS (RFC 1035, 2.3.4)."""

_TCP_CLIENTS: Final = 64
_LARGEST_UDP: Final = 4096
_LARGEST: Final = 65535

_NEVER_FROM_OUTSIDE: Final = tuple(map(ip_network, ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")))
"""A name out there that has such an address wants to reach what its client alone can reach: DNS rebinding."""


@define(eq=False, kw_only=True)
class DnsServer:
    """Answers on one address, UDP and TCP."""

    address: IPv4Address
    network: IPv4Network
    """Of the sandboxes: no name out there has an address in it."""

    lookup: Callable[[str], Sequence[IPv4Address]]
    """The addresses of a name below the zone, which comes in lower case and without the zone."""

    upstream: Callable[[], Sequence[str]]
    """The addresses of the servers that are asked for all other names, the preferred first."""

    port: int = PORT
    upstream_port: int = PORT
    _queries: int = field(init=False, default=0)

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; reports the port.

        Raises:
            OSError: the address can't be bound.
        """
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as udp:
            await udp.bind((str(self.address), self.port))
            port: int = udp.getsockname()[1]
            listeners = await trio.open_tcp_listeners(port, host=str(self.address))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.serve_listeners, _limited(self._serve_tcp), listeners))
                nursery.start_soon(self._serve_udp, udp, nursery)
                task_status.started(port)

    async def _serve_udp(self, udp: SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                query, client = await udp.recvfrom(_LARGEST_UDP)
            except OSError:  # an ICMP error that an earlier answer has caused
                continue
            if self._queries < _QUERIES:
                self._queries += 1
                nursery.start_soon(self._answer_udp, udp, query, client)

    async def _answer_udp(self, udp: SocketType, query: bytes, client: tuple[str, int]) -> None:
        try:
            answer = await self._answer(query, over_tcp=False)
            if answer:
                with suppress(OSError):
                    await udp.sendto(answer, client)
        finally:
            self._queries -= 1

    async def _serve_tcp(self, stream: trio.SocketStream) -> None:
        """Each message has its length in two bytes before it (RFC 1035, 4.2.2)."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                while True:
                    with trio.move_on_after(_TCP_IDLE) as idle:
                        query = await _receive_message(stream)
                    if idle.cancelled_caught or not query:
                        return
                    answer = await self._answer(query, over_tcp=True)
                    if not answer:
                        return
                    with trio.move_on_after(_TCP_IDLE) as idle:
                        await stream.send_all(len(answer).to_bytes(2) + answer)
                    if idle.cancelled_caught:
                        return

    async def _answer(self, wire: bytes, *, over_tcp: bool) -> bytes:
        """The answer to a query; empty for what is none."""
        try:
            query = message.from_wire(wire)
        except (exception.DNSException, ValueError):
            return b""
        if query.flags & flags.QR:
            return b""
        if query.opcode() != opcode.QUERY or len(query.question) != 1:
            return _refusal(query, rcode.NOTIMP)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        if name == ZONE or name.endswith(f".{ZONE}"):
            return self._local(query, name.removesuffix(ZONE).removesuffix("."))
        return await self._forward(query, over_tcp=over_tcp)

    def _local(self, query: Message, name: str) -> bytes:
        """Authoritative: NXDOMAIN for a name that nobody has, no data for other types of one that somebody has."""
        answer = message.make_response(query, recursion_available=True)
        answer.flags |= flags.AA
        question = query.question[0]
        addresses = self.lookup(name) if name else ()
        if addresses and question.rdtype in (rdatatype.A, rdatatype.ANY):
            answer.answer.append(rrset.from_text(question.name, _TTL, "IN", "A", *map(str, addresses[:_ADDRESSES])))
        else:
            # Without an SOA record, caches keep "no such name" for as long as they like (RFC 2308, 5).
            soa = f"ns.{ZONE}. hostmaster.{ZONE}. 1 3600 600 86400 {_TTL}"
            answer.authority.append(rrset.from_text(f"{ZONE}.", _TTL, "IN", "SOA", soa))
            if name and not addresses:
                answer.set_rcode(rcode.NXDOMAIN)
        return answer.to_wire()

    async def _forward(self, query: Message, *, over_tcp: bool) -> bytes:
        for server in self.upstream():
            with trio.move_on_after(_UPSTREAM_TIMEOUT), suppress(OSError):
                answer = await (self._ask_tcp if over_tcp else self._ask_udp)(query, server)
                if answer is not None and answer.rcode() not in (rcode.SERVFAIL, rcode.REFUSED):
                    return self._without_rebinding(query, answer)
        return _refusal(query, rcode.SERVFAIL)

    async def _ask_udp(self, query: Message, server: str) -> Message | None:
        """Ask from a port and with an id of its own: who can't see the query can't make an answer to it (RFC 5452)."""
        own = _with_new_id(query)
        with trio.socket.socket(_family(server), trio.socket.SOCK_DGRAM) as udp:
            await udp.connect((server, self.upstream_port))  # so only its datagrams come in
            await udp.send(own.to_wire())
            while True:
                answer = _answer_to(own, await udp.recv(_LARGEST))
                if answer is not None:
                    return answer

    async def _ask_tcp(self, query: Message, server: str) -> Message | None:
        own = _with_new_id(query)
        stream = await trio.open_tcp_stream(server, self.upstream_port)
        async with stream:
            wire = own.to_wire()
            await stream.send_all(len(wire).to_bytes(2) + wire)
            return _answer_to(own, await _receive_message(stream))

    def _without_rebinding(self, query: Message, answer: Message) -> bytes:
        """The answer under the client's id; without any record if one of its addresses is not to be had out there."""
        answer.id = query.id
        if any(self._is_inside(address) for address in _addresses(answer)):
            log.warning("DNS answer dropped: its address is inside", extra={"question": str(query.question[0].name)})
            answer.answer.clear()
            answer.additional.clear()
        return answer.to_wire(max_size=_LARGEST)

    def _is_inside(self, text: str) -> bool:
        address = ip_address(text)
        return any(address in network for network in (self.network, *_NEVER_FROM_OUTSIDE))


def _limited(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """Turn away TCP clients while there are too many."""
    limiter = trio.CapacityLimiter(_TCP_CLIENTS)

    async def admit(stream: trio.SocketStream) -> None:
        try:
            limiter.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            await stream.aclose()
            return
        try:
            await serve(stream)
        finally:
            limiter.release_on_behalf_of(stream)

    return admit


def _refusal(query: Message, code: int) -> bytes:
    answer = message.make_response(query, recursion_available=True)
    answer.set_rcode(rcode.Rcode.make(code))
    return answer.to_wire()


def _with_new_id(query: Message) -> Message:
    own: Message = message.from_wire(query.to_wire())
    own.id = secrets.randbits(16)
    return own


def _answer_to(query: Message, wire: bytes) -> Message | None:
    """A message if it is an answer to just this query."""
    try:
        answer: QueryMessage | Message = message.from_wire(wire, ignore_trailing=True)
    except (exception.DNSException, ValueError):
        return None
    return answer if query.is_response(answer) else None


def _addresses(answer: Message) -> Iterable[str]:
    for records in (*answer.answer, *answer.additional):
        if records.rdtype in (rdatatype.A, rdatatype.AAAA):
            yield from (record.address for record in records)


def _family(server: str) -> int:
    return int(trio.socket.AF_INET6 if ":" in server else trio.socket.AF_INET)


async def _receive_message(stream: trio.SocketStream) -> bytes:
    """A message on TCP; empty when the stream ends before or in one."""
    length = int.from_bytes(await _receive_exactly(stream, 2))
    return await _receive_exactly(stream, length)


async def _receive_exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = await stream.receive_some(length - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
