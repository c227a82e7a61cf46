"""The API of a real cluster, through the agent's proxy, with the kubeconfig that arcboxctl has merged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import Factory, frozen

from arcbox_client import connect
from tests.kubernetes.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.kubernetes.conftest import Guest

pytestmark = pytest.mark.kubernetes

WATCHED_SECONDS: Final = float(os.environ.get("ARCBOX_TEST_WATCHED_SECONDS", "5"))
EVENTS: Final = 10

OURS: Final = """\
apiVersion: v1
kind: Config
clusters:
- name: elsewhere
  cluster: {server: "https://192.0.2.7"} # by hand
contexts:
- name: elsewhere
  context: {cluster: elsewhere, user: me}
users:
- name: me
  user: {token: secret}
current-context: elsewhere
"""


@frozen
class Command:
    """A process that runs in the node, and what it has written."""

    _process: trio.Process
    _read: bytearray = Factory(bytearray)

    async def line(self) -> str:
        """The next line of its standard output."""
        assert self._process.stdout is not None
        while b"\n" not in self._read:
            data = await self._process.stdout.receive_some()
            assert data, "it has ended"
            self._read.extend(data)
        line, _, rest = self._read.partition(b"\n")
        self._read[:] = rest
        return line.decode()


@asynccontextmanager
async def running(guest: Guest, *command: str) -> AsyncIterator[Command]:
    """A process for as long as the context lasts."""
    start = partial(trio.run_process, guest.node.entered(*command), stdout=subprocess.PIPE, check=False)
    async with trio.open_nursery() as nursery:
        yield Command(await nursery.start(start))
        nursery.cancel_scope.cancel()


async def test_kubectl_reads_and_watches_through_the_proxy(real_guest: Guest, components: Path) -> None:
    programs = sorted(components.glob("kubectl*"))  # noqa: ASYNC240  Debian's, and a current one
    guest, directory = real_guest, real_guest.node.directory
    config = directory / "kubeconfig"
    config.write_text(OURS)
    relay = ("socat", "TCP-LISTEN:16443,bind=127.0.0.1,fork", f"UNIX-CONNECT:{directory}/kubernetes.sock")
    with guest.agent() as agent:
        async with connect(agent.address) as client, running(guest, *relay):
            await guest.start_docker(client)
            await guest.start_cluster(client)
            await guest.run_pod("one")
            command = [sys.executable, "-m", "arcbox_client.cli", "--connect", agent.address, "k8s", "kubeconfig"]
            await trio.run_process([*command, "--merge", "--file", str(config)], capture_stdout=True)
            for program in programs:
                await use(guest, str(program), config)


async def use(guest: Guest, program: str, config: Path) -> None:
    """Do with one version of kubectl what people do, and watch for a while."""
    assert await guest.node.run(program, f"--kubeconfig={config}", "config", "current-context") == "elsewhere\n"
    kubectl = (program, f"--kubeconfig={config}", "--context=arcbox")
    versions = json.loads(await guest.node.run(*kubectl, "version", "--output=json"))
    client, server = (versions[f"{side}Version"]["gitVersion"] for side in ("client", "server"))
    assert server == "v1.20.2"
    assert await guest.node.run(*kubectl, "get", "nodes", "--output=name") == "node/node\n"
    assert await guest.node.run(*kubectl, "exec", "one", "--", "echo", "through") == "through\n"
    async with running(guest, *kubectl, "get", "configmaps", "--watch", "--output=name") as watch:
        for number in range(EVENTS):
            name = f"{client}-{number}"
            with trio.fail_after(PATIENCE):
                await guest.node.run(*kubectl, "create", "configmap", name)
                while await watch.line() != f"configmap/{name}":
                    pass  # what was there before
            await trio.sleep(WATCHED_SECONDS / EVENTS)  # a stream that is silent stays open
    print(f"kubectl {client}: {EVENTS} events in {WATCHED_SECONDS:g} s of one watch")  # noqa: T201  for who asks with -s
