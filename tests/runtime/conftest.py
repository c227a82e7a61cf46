"""Real agents with a real containerd and dockerd, in directories of their own, which touch no network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define

from arcbox_client import connect
from arcbox_client._agent_process import COMMAND, SETTINGS, RunningAgent, running_agent
from arcbox_guest.daemon_process import Identity
from arcbox_guest.sandboxes.busybox import build
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NEEDED = ("containerd", "dockerd", "docker", "runc", "busybox")

CONTAINERD_CONFIG = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'

SETTINGS_OF_RUNTIME = {
    "runtime.binary_dirs": ["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "runtime.containerd_args": ["--config=$SHARED/containerd.toml"],
    "runtime.dockerd_args": [
        "--iptables=false",
        "--ip6tables=false",
        "--bridge=none",
        "--ip-forward=false",
        "--ip-masq=false",
        "--config-file=$SHARED/daemon.json",
    ],
    "runtime.containerd_socket": "$SHARED/containerd.sock",
    "runtime.docker_socket": "$SHARED/docker.sock",
    "runtime.state_dir": "$SHARED/runtime",
    "runtime.data_base": "$SHARED/data",
}


@define(eq=False)
class RuntimeHost:
    """Where agents run that share one container runtime, one after the other or beside each other."""

    directory: Path
    """Of the runtime."""

    has_box: bool = False
    """Whether it runs, and has the image `box`."""

    @contextmanager
    def agent(
        self,
        name: str = "agent",
        *,
        command: Sequence[str] = COMMAND,
        others: Mapping[str, object] = MappingProxyType({}),
        **runtime: Any,  # noqa: ANN401  values of settings
    ) -> Iterator[RunningAgent]:
        """An agent; its proxy listens on `NAME.sock`.

        Args:
            name: of the proxy.
            command: the agent's program.
            others: settings outside of the section `runtime`, by their full keys.
            runtime: its own settings in the section `runtime`.
        """
        own = Path(tempfile.mkdtemp(prefix="agent-", dir=self.directory))
        settings = dict(line.split(" = ", 1) for line in SETTINGS.splitlines() if " = " in line)
        settings["proxy.docker.listen"] = json.dumps([f"unix:{self.directory}/{name}.sock"])
        changed = SETTINGS_OF_RUNTIME | {f"runtime.{key}": value for key, value in runtime.items()}
        settings |= {key: json.dumps(value) for key, value in (changed | {**others}).items()}
        text = "".join(f"{key} = {value}\n" for key, value in settings.items())
        with running_agent(own, settings=text.replace("$SHARED", str(self.directory)), command=command) as agent:
            yield agent

    def docker_command(self, *arguments: str, agent: str = "agent") -> list[str]:
        return ["docker", "-H", f"unix://{self.directory}/{agent}.sock", *arguments]

    async def docker(self, *arguments: str, stdin: bytes = b"", agent: str = "agent") -> bytes:
        """What the docker CLI prints, once proxy and dockerd are connected."""
        while (done := await self.try_docker(*arguments, stdin=stdin, agent=agent)).returncode:
            assert b"Cannot connect" in done.stderr, done.stderr.decode()
        return done.stdout

    async def try_docker(
        self, *arguments: str, stdin: bytes = b"", agent: str = "agent"
    ) -> subprocess.CompletedProcess[bytes]:
        """The docker CLI, from its start to its end."""
        environment = {**os.environ, "DOCKER_CONFIG": str(self.directory / "cli")}
        command = self.docker_command(*arguments, agent=agent)
        return await trio.run_process(
            command, stdin=stdin, env=environment, capture_stdout=True, capture_stderr=True, check=False
        )

    def pid(self, daemon: str) -> int:
        """Of a daemon, as its pid file says."""
        identity = Identity.read(self.directory / "runtime" / f"{daemon}.pid")
        assert identity is not None
        return identity.pid

    def processes(self, daemon: str) -> int:
        """How many of a daemon run in these directories."""
        found = 0
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = process.read_bytes().split(b"\0")
            except OSError:
                continue
            mine = any(os.fsencode(self.directory) in argument for argument in arguments)
            found += mine and Path(os.fsdecode(arguments[0])).name == daemon
        return found

    def clean_up(self) -> None:
        """End the daemons, and whatever runs in their containers."""
        for daemon in ("dockerd", "containerd"):
            identity = Identity.read(self.directory / "runtime" / f"{daemon}.pid")
            process = identity and identity.open()
            if process:
                process.signal(signal.SIGKILL)
                process.discard()
        for process_directory in Path("/proc").glob("[0-9]*"):
            try:
                command = process_directory.joinpath("cmdline").read_bytes()
            except OSError:
                continue
            if b"containerd-shim" in command and os.fsencode(self.directory) in command:
                os.kill(int(process_directory.name), signal.SIGKILL)
        mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self.directory}/")]):
            subprocess.run(["umount", "-l", mount], check=False)  # noqa: S603, S607  a mount of these daemons


@pytest.fixture(scope="module")
def host() -> Iterator[RuntimeHost]:
    with runtime_host() as host:
        yield host


@pytest.fixture
async def box(host: RuntimeHost) -> None:
    """Have the runtime started, and the image `box` in it; once for all tests."""
    if host.has_box:
        return
    with host.agent("first") as agent:
        async with connect(agent.address) as client, client.watch_readiness(start_runtime_if_needed=True) as events:
            assert [event.kind async for event in events][-1] == arcbox_v1.ReadinessEvent.RUNTIME_READY
        await host.docker("import", str(host.directory / "rootfs.tar"), "box", agent="first")
    host.has_box = True


@contextmanager
def runtime_host() -> Iterator[RuntimeHost]:
    """Directories for a runtime that is not started yet."""
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"the container runtime takes root and {', '.join(missing) or 'nothing else'}")
    with tempfile.TemporaryDirectory(prefix="arcbox-", ignore_cleanup_errors=True) as name:
        host = RuntimeHost(Path(name))
        host.directory.joinpath("containerd.toml").write_text(CONTAINERD_CONFIG)
        host.directory.joinpath("daemon.json").write_text("{}")
        build(host.directory / "rootfs")
        with tarfile.open(host.directory / "rootfs.tar", "w") as tar:
            tar.add(host.directory / "rootfs", ".")
        try:
            yield host
        finally:
            host.clean_up()
