"""Names of sandboxes and of others, over real sockets on loopback."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field
from dns import flags, message, rcode, rrset

from arcbox_guest.network.dns_server import DnsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOME = IPv4Address("127.0.0.1")
SANDBOXES = {
    "web": [IPv4Address("172.20.0.5")],
    "a.b_c-d": [IPv4Address("172.20.0.6")],
    "many": [IPv4Address("172.17.0.1") + number for number in range(100)],
}


@define(eq=False)
class Upstream:
    """A server out there, which answers by script. Named as what it is: a stand-in for the guest's own resolver."""

    script: Callable[[message.Message], list[bytes]]
    """The datagrams, or messages on TCP, that answer a query."""

    port: int = 0
    asked: list[str] = field(factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as udp:
            await udp.bind((str(HOME), 0))
            self.port = udp.getsockname()[1]
            listeners = await trio.open_tcp_listeners(self.port, host=str(HOME))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._serve_tcp, listeners)
                task_status.started()
                while True:
                    data, client = await udp.recvfrom(4096)
                    for answer in self._answers(data):
                        await udp.sendto(answer, client)

    async def _serve_tcp(self, stream: trio.SocketStream) -> None:
        data = await stream.receive_some(4096)
        for answer in self._answers(data[2:]):
            await stream.send_all(len(answer).to_bytes(2) + answer)

    def _answers(self, data: bytes) -> list[bytes]:
        query = message.from_wire(data)
        self.asked.append(query.question[0].name.to_text())
        return self.script(query)


def with_address(query: message.Message, address: str) -> message.Message:
    answer = message.make_response(query)
    answer.answer.append(rrset.from_text(query.question[0].name, 60, "IN", "A", address))
    return answer


def honest(query: message.Message) -> list[bytes]:
    return [with_address(query, "192.0.2.7").to_wire()]


@define(eq=False)
class Resolver:
    """The server under test, and a client of it."""

    port: int
    upstream: Upstream

    async def ask(self, name: str, kind: str = "A", *, tcp: bool = False) -> message.Message:
        query = message.make_query(name, kind)
        answer = message.from_wire(await self.exchange(query.to_wire(), tcp=tcp))
        assert query.is_response(answer)
        return answer

    async def exchange(self, data: bytes, *, tcp: bool = False) -> bytes:
        if tcp:
            async with await trio.open_tcp_stream(str(HOME), self.port) as stream:
                await stream.send_all(len(data).to_bytes(2) + data)
                answer = b""
                while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2]):
                    piece = await stream.receive_some()
                    assert piece
                    answer += piece
                return answer[2:]
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as udp:
            await udp.connect((str(HOME), self.port))
            await udp.send(data)
            return await udp.recv(4096)


@pytest.fixture
def script() -> Callable[[message.Message], list[bytes]]:
    return honest


@pytest.fixture
async def resolver(script: Callable[[message.Message], list[bytes]]) -> AsyncIterator[Resolver]:
    upstream = Upstream(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(upstream.run)
        server = DnsServer(
            address=HOME,
            network=IPv4Network("172.20.0.0/16"),
            lookup=lambda name: SANDBOXES.get(name, []),
            upstream=lambda: [str(HOME)],
            port=0,
            upstream_port=upstream.port,
        )
        yield Resolver(await nursery.start(server.run), upstream)
        nursery.cancel_scope.cancel()


def addresses(answer: message.Message) -> list[str]:
    return [record.address for records in answer.answer for record in records]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    ("name", "address"),
    [("web.arcbox.local", "172.20.0.5"), ("WEB.Arcbox.LOCAL", "172.20.0.5"), ("a.b_c-d.arcbox.local", "172.20.0.6")],
)
async def test_a_sandbox_is_found_by_its_id(resolver: Resolver, name: str, address: str, *, tcp: bool) -> None:
    answer = await resolver.ask(name, tcp=tcp)
    assert addresses(answer) == [address]
    assert answer.flags & flags.AA
    assert resolver.upstream.asked == []


async def test_an_answer_of_many_addresses_fits_into_a_datagram_without_extensions(resolver: Resolver) -> None:
    query = message.make_query("many.arcbox.local", "A", use_edns=False)
    answer = await resolver.exchange(query.to_wire())
    assert len(answer) <= 512
    assert len(addresses(message.from_wire(answer))) == 16


@pytest.mark.parametrize("name", ["nobody.arcbox.local", "x.web.arcbox.local"])
async def test_a_local_name_that_nobody_has_does_not_exist_and_is_asked_nowhere(resolver: Resolver, name: str) -> None:
    answer = await resolver.ask(name)
    assert answer.rcode() == rcode.NXDOMAIN
    assert "SOA" in answer.authority[0].to_text()
    assert resolver.upstream.asked == []


@pytest.mark.parametrize("kind", ["AAAA", "MX", "TXT"])
async def test_a_sandbox_s_name_has_no_data_of_other_types(resolver: Resolver, kind: str) -> None:
    answer = await resolver.ask("web.arcbox.local", kind)
    assert (answer.rcode(), answer.answer) == (rcode.NOERROR, [])


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_all_other_names_are_asked_elsewhere(resolver: Resolver, *, tcp: bool) -> None:
    assert addresses(await resolver.ask("example.org", tcp=tcp)) == ["192.0.2.7"]
    assert resolver.upstream.asked == ["example.org."]


def spoofed_first(query: message.Message) -> list[bytes]:
    wrong_id = with_address(query, "192.0.2.66")
    wrong_id.id = (query.id + 1) % 65536
    wrong_question = message.make_response(message.make_query("example.com", "A"))
    wrong_question.id = query.id
    return [b"no message", wrong_id.to_wire(), wrong_question.to_wire(), *honest(query)]


@pytest.mark.parametrize("script", [spoofed_first])
async def test_an_answer_to_another_query_is_not_taken_for_one(resolver: Resolver) -> None:
    assert addresses(await resolver.ask("example.org")) == ["192.0.2.7"]


@pytest.mark.parametrize(
    "script",
    [
        lambda query: [with_address(query, "172.20.0.5").to_wire()],
        lambda query: [with_address(query, "127.0.0.1").to_wire()],
        lambda query: [with_address(query, "169.254.169.254").to_wire()],
    ],
    ids=["a sandbox", "loopback", "link-local"],
)
async def test_a_name_out_there_has_no_address_in_here(resolver: Resolver) -> None:
    answer = await resolver.ask("rebind.example.org")
    assert (answer.rcode(), answer.answer, answer.additional) == (rcode.NOERROR, [], [])


@pytest.mark.parametrize("script", [lambda query: [message.make_response(query).to_wire()[:3] + b"\x82"]])
async def test_a_server_that_is_no_help_within_its_time_is_a_failure(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcbox_guest.network.dns_server._UPSTREAM_TIMEOUT", 0.05)
    assert (await resolver.ask("example.org")).rcode() == rcode.SERVFAIL


async def test_what_is_no_query_gets_no_answer_and_harms_nobody(resolver: Resolver) -> None:
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as udp:
        await udp.connect((str(HOME), resolver.port))
        for garbage in (b"", b"x", bytes(12), b"\xff" * 512):
            await udp.send(garbage)
    assert addresses(await resolver.ask("web.arcbox.local")) == ["172.20.0.5"]


async def test_a_client_on_tcp_that_says_nothing_holds_up_no_other(resolver: Resolver) -> None:
    async with await trio.open_tcp_stream(str(HOME), resolver.port):
        assert addresses(await resolver.ask("web.arcbox.local", tcp=True)) == ["172.20.0.5"]


async def test_many_queries_at_once_are_all_answered(resolver: Resolver) -> None:
    answered: list[message.Message] = []

    async def ask(name: str) -> None:
        answered.append(await resolver.ask(name))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(partial(ask, f"host-{number}.example.org"))
    assert len(answered) == 50
