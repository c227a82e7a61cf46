"""The network of sandboxes: a real agent in a network namespace of its own, which stands for the guest's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from arcbox_client._agent_process import COMMAND, SETTINGS
from arcbox_client.errors import NotSupportedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent
    from tests.sandboxes.conftest import Machine

TAP: Final = "tap"
NONE: Final = "none"

CYCLES: Final = int(os.environ.get("ARCBOX_TEST_NETWORK_CYCLES", "10"))
"""Of create and remove. From 100 on, the pool is proved to be full afterwards by emptying it."""

HOSTS: Final = 61
"""Addresses for sandboxes in a network of 26 bits."""

APART = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', *COMMAND)
"""An agent in a network namespace of its own."""

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("nft", "ip", "unshare"))), reason="needs Debian's nftables, iproute2 and util-linux"
)


def settings(*lines: str) -> str:
    return SETTINGS.replace("network.enabled = false\n", "".join(f"{line}\n" for line in lines))


@pytest.fixture
def agent(machine: Machine) -> Iterator[RunningAgent]:
    with machine.running(settings(), APART) as agent:
        yield agent


@pytest.fixture
async def client(machine: Machine, agent: RunningAgent) -> AsyncIterator[AgentClient]:
    async with machine.client() as client:
        yield client


async def in_guest(agent: RunningAgent, *command: str, stdin: bytes = b"") -> str:
    """What a command prints in the agent's network namespace."""
    enter = ("nsenter", f"--net=/proc/{agent.pid}/ns/net", *command)
    completed = await trio.run_process(enter, stdin=stdin, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    return str(completed.stdout, "utf-8")


async def run(client: AgentClient, sandbox_id: str, script: str) -> tuple[int, str]:
    async with client.sandbox_run(sandbox_id, ["sh", "-c", script]) as session:
        completed = await session.collect()
    return completed.exit_code, (completed.stdout + completed.stderr).decode()


async def links(agent: RunningAgent) -> list[str]:
    listing = await in_guest(agent, "ip", "-br", "link")
    return [line.split("@")[0] for line in listing.splitlines() if line.startswith("arcb-")]


async def test_sandboxes_reach_the_gateway_each_other_and_by_name(
    machine: Machine, agent: RunningAgent, client: AgentClient
) -> None:
    first = await client.sandbox_create("one", network=TAP)
    second = await client.sandbox_create("two")  # no network named: tap
    assert (first.ip_address, second.ip_address) == ("172.20.0.2", "172.20.0.3")
    await client.sandbox_create("alone", network=NONE)
    for name in ("one", "two", "alone"):
        await machine.until(client, name, "ready")

    assert (await run(client, "one", "ping -c 1 -W 5 172.20.0.1 && ping -c 1 -W 5 172.20.0.3"))[0] == 0
    assert (await run(client, "one", "ping -c 1 -W 5 two.arcbox.local && ping -c 1 -W 5 two"))[0] == 0
    assert (await run(client, "one", "nslookup nobody.arcbox.local"))[0] != 0
    code, output = await run(client, "alone", "ping -c 1 -W 1 172.20.0.1")
    assert code != 0
    assert "unreachable" in output
    info = await client.sandbox_inspect("two")
    assert (info.network.ip_address, info.network.gateway) == ("172.20.0.3", "172.20.0.1")
    assert info.network.tap_name in await links(agent)
    assert {box.id: box.ip_address for box in (await client.sandbox_list()).sandboxes}["alone"] == ""


async def test_sandboxes_and_the_guest_reach_each_other_s_servers(
    machine: Machine, agent: RunningAgent, client: AgentClient
) -> None:
    await machine.ready(client, "served", network=TAP)
    await machine.ready(client, "client", network=TAP)
    await machine.ready(client, "alone", network=NONE)
    page = machine.directory / "www" / "page"
    page.parent.mkdir()
    page.write_text("from the guest\n")
    assert (await run(client, "served", "mkdir /www; echo from a sandbox > /www/page; httpd -h /www"))[0] == 0
    server = ("busybox", "httpd", "-f", "-p", "172.20.0.1:8000", "-h", str(page.parent))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.run_process, ("nsenter", f"--net=/proc/{agent.pid}/ns/net", *server))
        with trio.fail_after(20):  # httpd does not tell when it listens
            while (fetched := await run(client, "client", "wget -q -O - http://172.20.0.1:8000/page"))[0]:
                assert "refused" in fetched[1]
        assert fetched == (0, "from the guest\n")
        assert (await run(client, "client", "wget -q -O - http://172.20.0.2/page")) == (0, "from a sandbox\n")
        assert await in_guest(agent, "busybox", "wget", "-q", "-O", "-", "http://172.20.0.2/page") == "from a sandbox\n"
        code, output = await run(client, "alone", "wget -q -O - http://172.20.0.1:8000/page")
        assert (code, "unreachable" in output) == (1, True)
        nursery.cancel_scope.cancel()


@pytest.fixture
def glibc_rootfs(machine: Machine) -> str:
    """A root file system with Debian's dig and getent, and the libraries that they take."""
    rootfs = machine.directory / "glibc"
    shutil.copytree(machine.rootfs, rootfs, symlinks=True)
    for name in ("dig", "getent"):
        program = shutil.which(name)
        if program is None:
            pytest.skip("needs Debian's bind9-dnsutils")
        libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout  # noqa: S603, S607
        (rootfs / "opt").mkdir(exist_ok=True)
        shutil.copy(program, rootfs / "opt" / name)
        for library in (word for word in libraries.split() if word.startswith("/")):
            target = rootfs / library[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(library).resolve(), target)
    return str(rootfs)


async def test_dig_and_the_c_library_find_the_other_sandbox_by_name(
    machine: Machine, client: AgentClient, glibc_rootfs: str
) -> None:
    await machine.ready(client, "one", network=TAP, rootfs=glibc_rootfs)
    await machine.ready(client, "two", network=TAP, rootfs=glibc_rootfs)
    for transport in ("+notcp", "+tcp"):
        dig = f"/opt/dig {transport} +short two.arcbox.local A; /opt/dig {transport} +short +search two"
        assert await run(client, "one", dig) == (0, "172.20.0.3\n172.20.0.3\n")
    assert "status: NXDOMAIN" in (await run(client, "one", "/opt/dig nobody.arcbox.local"))[1]
    no_data = (await run(client, "one", "/opt/dig two.arcbox.local AAAA"))[1]
    assert "status: NOERROR" in no_data
    assert "ANSWER: 0," in no_data
    for name in ("two", "two.arcbox.local"):
        code, found = await run(client, "one", f"/opt/getent ahostsv4 {name}")
        assert (code, found.split()[:2]) == (0, ["172.20.0.3", "STREAM"])
    assert await run(client, "one", "/opt/getent hosts nobody") == (2, "")


async def test_cycles_of_create_and_remove_use_up_no_address_and_no_link(machine: Machine) -> None:
    with machine.running(settings('network.subnet = "10.99.0.0/26"'), APART) as agent:
        async with machine.client() as client:
            for number in range(CYCLES):
                await create_when_an_address_is_free(client, f"box-{number}")
                await client.sandbox_remove(f"box-{number}", force=True)
            assert await links(agent) == []
            if CYCLES >= 100:
                given = {await create_when_an_address_is_free(client, f"all-{number}") for number in range(HOSTS)}
                assert len(given) == HOSTS


async def create_when_an_address_is_free(client: AgentClient, sandbox_id: str) -> str:
    """Create a sandbox; returns its address. Those of removed ones rest for half a minute."""
    while True:
        try:
            return (await client.sandbox_create(sandbox_id, network=TAP, memory_mib=16, wait=True)).ip_address
        except UnavailableError:
            await trio.sleep(0.5)


async def test_what_belongs_to_a_removed_sandbox_is_gone(
    machine: Machine, agent: RunningAgent, client: AgentClient
) -> None:
    for number in range(5):
        await client.sandbox_create(f"box-{number}", network=TAP)
    for number in range(5):
        await machine.until(client, f"box-{number}", "ready")
    assert len(await links(agent)) == 5
    for number in range(5):
        await client.sandbox_remove(f"box-{number}", force=True)
    assert await links(agent) == []


async def test_a_pool_that_runs_out_is_told_at_once(machine: Machine) -> None:
    with machine.running(settings('network.subnet = "10.99.0.0/29"'), APART):
        async with machine.client() as client:
            for number in range(5):
                await client.sandbox_create(f"box-{number}", network=TAP)
            with pytest.raises(UnavailableError, match=r"all addresses of 10\.99\.0\.0/29 are in use"):
                await client.sandbox_create("one-more", network=TAP)
            await client.sandbox_create("without", network=NONE)


async def test_a_network_that_another_interface_is_in_is_refused_and_both_are_named(
    machine: Machine, agent: RunningAgent, client: AgentClient
) -> None:
    await in_guest(agent, "ip", "link", "add", "br-docker", "type", "bridge")
    await in_guest(agent, "ip", "address", "add", "172.20.128.1/17", "dev", "br-docker")
    await client.sandbox_create("box", network=TAP)
    await machine.until(client, "box", "failed")
    reason = "172.20.0.0/16 is in use: br-docker has 172.20.128.1/17"
    assert reason in (await client.sandbox_inspect("box")).error
    await in_guest(agent, "ip", "link", "delete", "br-docker")
    await machine.ready(client, "again", network=TAP)


async def test_where_it_is_off_a_network_is_refused_and_none_is_the_default(machine: Machine) -> None:
    with machine.running():
        async with machine.client() as client:
            with pytest.raises(NotSupportedError, match=r"network\.enabled"):
                await client.sandbox_create("box", network=TAP)
            assert (await client.sandbox_create("box")).ip_address == ""


async def test_a_firewall_that_flushes_all_tables_is_coped_with(
    machine: Machine, agent: RunningAgent, client: AgentClient
) -> None:
    await machine.ready(client, "box", network=TAP)
    whole = await in_guest(agent, "nft", "list", "table", "inet", "arcbox")
    assert "masquerade" in whole
    assert "169.254.0.0/16 drop" in whole
    await in_guest(agent, "nft", "flush", "ruleset")
    with trio.fail_after(20):
        while await in_guest(agent, "nft", "list", "table", "inet", "arcbox") != whole:  # noqa: ASYNC110  it is another process
            await trio.sleep(0.01)


@asynccontextmanager
async def guest_network() -> AsyncIterator[tuple[str, ...]]:
    """A network namespace as a guest's, in which one agent after the other lives: the command of each of them."""
    holder = await trio.lowlevel.open_process(["unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep 600"])
    try:
        with trio.fail_after(10):
            while "UP" not in await in_guest_of(holder.pid, "ip", "-br", "link"):  # noqa: ASYNC110  it is another process
                await trio.sleep(0.01)
        yield ("nsenter", f"--net=/proc/{holder.pid}/ns/net", *COMMAND)
    finally:
        with trio.move_on_after(10, shield=True):
            holder.kill()
            await holder.wait()


async def test_what_a_killed_agent_left_is_swept(machine: Machine) -> None:
    async with guest_network() as command:
        with machine.running(settings(), command):
            async with machine.client() as client:
                await machine.ready(client, "box", network=TAP)
            machine.process.send_signal(signal.SIGKILL)
        with machine.running(settings(), command) as agent:
            async with machine.client() as client:
                assert len(await links(agent)) == 1
                await client.sandbox_remove("box", force=True)
                assert await links(agent) == []


async def test_an_adopted_sandbox_keeps_its_address_and_no_other_one_gets_it(machine: Machine) -> None:
    addresses = ["172.20.0.3", "172.20.0.4"]
    async with guest_network() as command:
        with machine.running(settings(), command):
            async with machine.client() as client:
                await machine.ready(client, "first", network=TAP)
                for name in ("one", "two"):
                    await machine.ready(client, name, network=TAP)
                await client.sandbox_remove("first")
                assert [box.ip_address for box in (await client.sandbox_list()).sandboxes] == addresses
            machine.process.send_signal(signal.SIGKILL)
        with machine.running(settings(), command) as agent:
            async with machine.client() as client:
                assert [box.ip_address for box in (await client.sandbox_list()).sandboxes] == addresses
                others = [await client.sandbox_create(name, network=TAP) for name in ("three", "four")]
                assert [box.ip_address for box in others] == ["172.20.0.2", "172.20.0.5"]
                for name in ("three", "four"):
                    await machine.until(client, name, "ready")
                for name in ("one", "three"):
                    code, output = await run(client, name, "ping -c 1 -W 5 172.20.0.1 && ping -c 1 -W 5 two")
                    assert code == 0, output
                for name in ("one", "two", "three", "four"):
                    await client.sandbox_remove(name, force=True)
                assert await links(agent) == []


async def in_guest_of(pid: int, *command: str) -> str:
    enter = ("nsenter", f"--net=/proc/{pid}/ns/net", *command)
    return str((await trio.run_process(enter, capture_stdout=True, check=False)).stdout, "utf-8")
