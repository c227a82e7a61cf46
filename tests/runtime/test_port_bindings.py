"""Which ports lead to containers, told by a real dockerd in a network namespace of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arcbox_client import connect
from arcbox_client._agent_process import COMMAND
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from tests.runtime.conftest import RuntimeHost

IN_A_NETWORK_OF_ITS_OWN = ("unshare", "--net", *COMMAND)

ALONE = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bip=10.199.0.1/24"]


@pytest.fixture
def published() -> arcbox_v1.PortBinding:
    return arcbox_v1.PortBinding(container_port=80, host_port=8080, protocol="tcp", host_ip="0.0.0.0")  # noqa: S104  in its own network


async def test_a_connection_that_asked_is_told_of_ports_as_containers_come_and_go(
    host: RuntimeHost, published: arcbox_v1.PortBinding
) -> None:
    arguments = [*ALONE, f"--config-file={host.directory}/daemon.json"]
    with host.agent(command=IN_A_NETWORK_OF_ITS_OWN, dockerd_args=arguments) as agent:
        async with connect(agent.address) as client, connect(agent.address) as late:
            async with client.watch_readiness(start_runtime_if_needed=True) as events:
                assert [event.kind async for event in events][-1] == arcbox_v1.ReadinessEvent.RUNTIME_READY
            await host.docker("import", str(host.directory / "rootfs.tar"), "box")
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
