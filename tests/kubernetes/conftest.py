"""Nodes with an agent, containerd, dockerd and a small stand-in for k3s."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from attrs import frozen

from arcbox_guest.sandboxes.busybox import build
from arcbox_protocol import arcbox_v1
from tests.kubernetes.node import Node, node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent

HERE: Final = Path(__file__).parent
STAND_IN: Final = HERE.parent / "guest/kubernetes/k3s_stand_in.py"

OF_A_NODE: Final = ("catatonit", "busybox", "containerd", "docker", "dockerd", "ip", "iptables", "runc", "unshare")

BOX: Final = "registry.test/box:1"
"""Busybox, as an image. Without a command it sleeps: it is the sandbox of pods as well."""

CONTAINERD: Final = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BOX}"
restrict_oom_score_adj = true
"""

STATE: Final = ("/var/lib/rancher/k3s", "/var/lib/kubelet", "/var/lib/cni")


def sorted_lines(text: str) -> list[str]:
    return sorted(filter(None, text.splitlines()))


@frozen
class Traces:
    """What Kubernetes leaves on a machine beside its files."""

    mounts: list[str]
    network_namespaces: list[str]
    links: list[str]
    rules: list[str]
    """Chains and rules of iptables and ip6tables."""

    cgroups: list[str]
    containers: list[str]
    """Containers, images, snapshots and content of its namespace in containerd."""

    shims: list[str]


@frozen
class Container:
    """One of Docker's."""

    id: str
    pid: int
    started_at: str


@frozen
class Guest:
    """A node, and what is asked of it."""

    node: Node

    @contextmanager
    def agent(self) -> Iterator[RunningAgent]:
        """One life of an agent."""
        with self.node.agent() as agent:
            try:
                yield agent
            except BaseException:
                print(agent.log, self._k3s_log())  # noqa: T201  pytest shows it with the failure
                raise

    def _k3s_log(self) -> str:
        logs = [self.node.path("/run/arcbox/k3s.log"), *self.node.path("/var/lib/rancher/k3s/log").glob("*")]
        return "".join(f"== {log.name}\n{log.read_text()[-4000:]}" for log in logs if log.exists())

    async def start_docker(self, client: AgentClient) -> None:
        """Have Docker with the image of all containers here."""
        async with client.watch_readiness(start_runtime_if_needed=True) as events:
            assert [event.kind async for event in events][-1] == arcbox_v1.ReadinessEvent.RUNTIME_READY
        entrypoint = 'ENTRYPOINT ["sleep", "2147483647"]'
        await self.docker("import", "--change", entrypoint, str(self.node.directory / "rootfs.tar"), BOX)
        await self.docker("save", "--output", str(self.node.directory / "image.tar"), BOX)

    async def import_image(self) -> None:
        """Have that image in Kubernetes's part of containerd."""
        await self.ctr("images", "import", str(self.node.directory / "image.tar"))

    async def docker(self, *arguments: str) -> str:
        return await self.node.run("docker", "--host", "unix:///run/docker.sock", *arguments)

    async def run_bystander(self) -> Container:
        """Have a container of Docker's that runs, with a port and a volume."""
        name = await self.docker("run", "--detach", "--publish=8080:80", "--volume=/data", BOX)
        return await self.bystander(name.strip())

    async def bystander(self, name: str) -> Container:
        state = json.loads(await self.docker("inspect", name))[0]["State"]
        assert state["Running"]
        return Container(name, state["Pid"], state["StartedAt"])

    async def ctr(self, *arguments: str) -> str:
        return await self.node.run("ctr", "--namespace", "k8s.io", *arguments)

    async def traces(self) -> Traces:
        """What there is now."""
        rules = [await self.node.run(program) for program in ("iptables-save", "ip6tables-save")]
        contents = [await self.ctr(kind, "ls", "-q") for kind in ("containers", "images", "content")]
        contents.append("".join((await self.ctr("snapshots", "ls")).splitlines(keepends=True)[1:]))
        return Traces(
            mounts=sorted_lines(await self.node.run("cut", "-d ", "-f5", "/proc/1/mountinfo")),
            network_namespaces=sorted_lines(await self.node.run("sh", "-c", "ls /run/netns 2>/dev/null || true")),
            links=sorted_lines(await self.node.run("sh", "-c", "ls /sys/class/net")),
            rules=[line for line in "".join(rules).splitlines() if line.startswith("-A") or line.endswith(" - [0:0]")],
            cgroups=sorted_lines(await self.node.run("find", "/sys/fs/cgroup", "-path", "*kubepods*")),
            containers=sorted_lines("".join(contents)),
            shims=sorted_lines(
                (await self.node.attempt("pgrep", "--full", "containerd-shim.* k8s.io")).stdout.decode()
            ),
        )

    async def state_files(self) -> list[str]:
        """What is in Kubernetes's three directories."""
        return (await self.node.run("find", *STATE, "-mindepth", "1", "-not", "-type", "d")).splitlines()


def skip_without(*programs: str) -> None:
    missing = [program for program in programs if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a node takes root and {', '.join(missing) or 'nothing else'}")


@contextmanager
def guest_with(k3s: Path) -> Iterator[Guest]:
    """A node on which nothing runs yet. It has a program as its k3s."""
    skip_without(*OF_A_NODE)
    with tempfile.TemporaryDirectory(prefix="arcbox-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        (directory / "bin").mkdir()
        program = directory / "bin/k3s"
        program.write_text(f"#!{sys.executable} -IS\n{k3s.read_text()}")
        program.chmod(0o755)
        (directory / "containerd.toml").write_text(CONTAINERD)
        build(directory / "rootfs")
        with tarfile.open(directory / "rootfs.tar", "w") as tar:
            tar.add(directory / "rootfs", ".")
        with node(directory) as running:
            yield Guest(running)


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A node with a stand-in for k3s."""
    with guest_with(STAND_IN) as guest:
        yield guest
