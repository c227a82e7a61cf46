"""Nodes with an agent, containerd, dockerd; and a small stand-in for k3s, or the real components of Kubernetes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
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
DOUBLE: Final = HERE / "k3s_double.py"

OF_A_NODE: Final = ("catatonit", "busybox", "containerd", "docker", "dockerd", "ip", "iptables", "runc", "unshare")
OF_KUBERNETES: Final = ("conntrack", "etcd", "openssl", "socat", "/usr/lib/cni/bridge")

PATIENCE: Final = 120.0
"""Seconds for what a cluster has to do: a node is ready after 20 on a quiet machine."""

BOX: Final = "registry.test/box:1"
"""Busybox, as an image. Without a command it sleeps: it is the sandbox of pods as well."""

CONTAINERD: Final = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BOX}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d"
"""

KUBECTL: Final = (
    "sh",
    "-c",
    'exec "$KUBERNETES_COMPONENTS/kubectl" --kubeconfig=/var/lib/rancher/k3s/k3s.yaml "$@"',
    "sh",
)

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
        changes = ("--change=ENV PATH=/bin", '--change=ENTRYPOINT ["sleep", "2147483647"]')
        await self.docker("import", *changes, str(self.node.directory / "rootfs.tar"), BOX)
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

    async def kubectl(self, *arguments: str) -> str:
        """What kubectl prints in the node itself."""
        return await self.node.run(*KUBECTL, *arguments)

    async def until(self, *arguments: str, says: str) -> None:
        """Ask kubectl until it says something."""
        with trio.fail_after(PATIENCE):
            while says not in (await self.node.attempt(*KUBECTL, *arguments)).stdout.decode().split():  # noqa: ASYNC110  it can only be asked
                await trio.sleep(0.2)

    async def start_cluster(self, client: AgentClient) -> None:
        """Have the cluster started as a host does, and wait until pods can run in it."""
        await self.import_image()
        with trio.fail_after(PATIENCE):
            started = await client.kubernetes_start()
            assert started.running, started.detail
            while not (await client.kubernetes_status()).api_ready:  # noqa: ASYNC110  it can only be asked
                await trio.sleep(0.1)
        await self.until_ready()

    async def until_ready(self) -> None:
        """Wait for the node, and for what pods need."""
        await self.until("get", "nodes", "--no-headers", says="Ready")
        await self.until("get", "serviceaccounts", "--output=name", says="serviceaccount/default")

    async def run_pod(self, name: str) -> None:
        """Have a pod that runs."""
        await self.kubectl("run", name, f"--image={BOX}", "--restart=Never", "--command", "--", "sleep", "2147483647")
        await self.until_running(name)

    async def until_running(self, name: str) -> None:
        await self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={PATIENCE:.0f}s")

    async def pod(self, name: str) -> tuple[dict[str, Any], int]:
        """The status of a pod's container as the cluster knows it, and the process that it is."""
        pod = json.loads(await self.kubectl("get", "pod", name, "--output=json"))
        (status,) = pod["status"]["containerStatuses"]
        tasks = dict(line.split()[:2] for line in (await self.ctr("tasks", "ls")).splitlines())
        return status, int(tasks[status["containerID"].removeprefix("containerd://")])

    def k3s(self) -> str:
        """The pid file: which process k3s is."""
        return self.node.path("/run/arcbox/k3s.pid").read_text()

    async def kill_k3s(self) -> None:
        """Have k3s killed, and wait until it is another one."""
        before = self.k3s()
        await self.node.run("sh", "-c", f"kill -KILL {before.split()[0]}")
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.checkpoint()
            while self.k3s() == before:  # noqa: ASYNC110  it can only be looked at
                await trio.sleep(0.1)

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


@pytest.fixture(scope="session")
def components() -> Path:
    """Where the components of Kubernetes are; they are built when they are not in the cache."""
    skip_without(*OF_KUBERNETES)
    made = subprocess.run([HERE / "components"], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own
    return Path(made.stdout.strip())


@pytest.fixture
def real_guest(components: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """A node with the real components."""
    monkeypatch.setenv("KUBERNETES_COMPONENTS", str(components))
    with guest_with(DOUBLE) as guest:
        yield guest
