"""What the agent knows of containers from a real dockerd, in a network namespace of its own: ports and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import connect
from arcbox_client._agent_process import COMMAND
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from tests.runtime.conftest import RuntimeHost

IN_A_NETWORK_OF_ITS_OWN = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', *COMMAND)

ALONE = ["--ip6tables=false", "--bip=10.199.0.1/24"]


@pytest.fixture
def published() -> arcbox_v1.PortBinding:
    return arcbox_v1.PortBinding(container_port=80, host_port=8080, protocol="tcp", host_ip="0.0.0.0")  # noqa: S104  in its own network


async def have_docker(client: AgentClient, host: RuntimeHost) -> None:
    async with client.watch_readiness(start_runtime_if_needed=True) as events:
        assert [event.kind async for event in events][-1] == arcbox_v1.ReadinessEvent.RUNTIME_READY
    await host.docker("import", str(host.directory / "rootfs.tar"), "box")


async def test_ports_are_told_and_names_are_answered_as_containers_come_and_go(
    host: RuntimeHost, published: arcbox_v1.PortBinding
) -> None:
    arguments = [*ALONE, f"--config-file={host.directory}/daemon.json"]
    others = {"network.enabled": True, "sandbox.rootfs": str(host.directory / "rootfs")}
    with host.agent(command=IN_A_NETWORK_OF_ITS_OWN, dockerd_args=arguments, others=others) as agent:
        async with connect(agent.address) as client, connect(agent.address) as late:
            await have_docker(client, host)
            await _told_of_ports(host, client, late, published)
            await _found_by_name(host, client)


async def _told_of_ports(
    host: RuntimeHost, client: AgentClient, late: AgentClient, published: arcbox_v1.PortBinding
) -> None:
    await client.watch_port_bindings()
    started = await host.docker("run", "-d", "-p", "0.0.0.0:8080:80", "box", "sleep", "1000")
    container = started.decode().strip()
    changed = arcbox_v1.PortBindingsChanged(container_id=container, bindings=[published])
    assert await anext(client.notifications) == changed
    await late.watch_port_bindings()
    assert await anext(late.notifications) == changed  # of what is there already
    await host.docker("rm", "-f", container)
    removed = arcbox_v1.PortBindingsRemoved(container_id=container)
    assert await anext(client.notifications) == removed
    assert await anext(late.notifications) == removed


async def _found_by_name(host: RuntimeHost, client: AgentClient) -> None:
    """Sandboxes find containers, and reach them past the rules by which dockerd drops what it forwards to nobody."""
    await client.sandbox_create("sandbox", wait=True, memory_mib=64)
    labels = ("--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=db")
    run = ("run", "-d", "--init=false")
    await host.docker(*run, "--name", "Web", "box", "sh", "-c", "echo served > /index.html; exec httpd -f -p 80 -h /")
    for number in (1, 2):
        await host.docker(*run, "--name", f"shop-db-{number}", *labels, "box", "sleep", "1000")

    assert len(await until_found(client, "db.shop", 2)) == 2
    (address,) = await until_found(client, "web", 1)
    assert (await until_found(client, "shop-db-1", 1))[0] != address
    fetched = await client.run("sandbox", ["wget", "-q", "-O", "-", f"http://{address}/"])
    assert (fetched.stdout, fetched.stderr) == (b"served\n", b"")

    await host.docker("rename", "Web", "site")
    assert await until_found(client, "site", 1) == [address]
    await host.docker("rm", "-f", "site", "shop-db-2")
    await until_found(client, "site", 0)
    assert len(await until_found(client, "db.shop", 1)) == 1
    await until_found(client, "web", 0)


async def until_found(client: AgentClient, name: str, number: int) -> list[str]:
    """Ask in the sandbox until a name has so many addresses: events take a moment."""
    with trio.fail_after(20):
        while True:
            asked = await client.run("sandbox", ["nslookup", "-type=a", f"{name}.arcbox.local"])
            answers = asked.stdout.decode().split(f"Name:\t{name}.arcbox.local\n")[1:]
            found = [answer.split("Address: ")[1].split()[0] for answer in answers]
            if len(found) == number:
                return found
            assert number or asked.exit_code == 0 or b"NXDOMAIN" in asked.stdout
            await trio.sleep(0.05)
