"""A real agent with real sandboxes, as a host sees it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trio
from attrs import define

from arcbox_client import connect
from arcbox_client._agent_process import COMMAND, SETTINGS, RunningAgent, running_agent
from arcbox_guest.sandboxes.busybox import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Unpack

    from arcbox_client import AgentClient, SandboxOptions

NEEDED = {"crun": "crun", "catatonit": "catatonit", "busybox": "busybox-static"}
"""Programs, by their Debian packages."""


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if missing:
        pytest.skip(f"sandboxes need Debian's {', '.join(missing)}")
    path = tmp_path_factory.mktemp("sandboxes") / "rootfs"
    build(path)
    return path


IMAGE_CONFIG = (
    "--config.entrypoint=/bin/sh",
    "--config.entrypoint=-c",
    "--config.cmd=echo $GREETING from $(pwd) by $(id -un) > said; sleep 1000",
    "--config.env=GREETING=hello",
    "--config.user=nobody",
    "--config.workingdir=/tmp",
)


def make_image(rootfs: Path, directory: Path) -> str:
    """An OCI image with busybox in it, and a configuration: its reference. It takes Debian's umoci."""
    layout, archive = directory / "layout", directory / "layer.tar"
    subprocess.run(["tar", "-C", rootfs, "-cf", archive, "."], check=True)  # noqa: S603, S607  our own files
    name = f"{layout}:busybox"
    for arguments in (
        ["init", "--layout", str(layout)],
        ["new", "--image", name],
        ["raw", "add-layer", "--image", name, str(archive)],
        ["config", "--image", name, *IMAGE_CONFIG],
    ):
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)  # noqa: S603, S607  Debian's
    return f"oci:{name}"


@define(eq=False)
class Machine:
    """Where an agent runs, and another one after it."""

    directory: Path
    rootfs: Path
    agent: RunningAgent | None = None
    settings: str = ""
    """Lines for the settings of the agents to come."""

    @contextmanager
    def running(self, settings: str = SETTINGS, command: Sequence[str] = COMMAND) -> Iterator[RunningAgent]:
        """An agent, until the context is left. All that run here have the same sandboxes."""
        settings = settings.replace("$DIRECTORY", str(self.directory)) + f'sandbox.rootfs = "{self.rootfs}"\n'
        for line in self.settings.splitlines():
            name = line.partition(" =")[0]
            settings = "".join(f"{other}\n" for other in settings.splitlines() if not other.startswith(f"{name} ="))
            settings += f"{line}\n"
        own = Path(tempfile.mkdtemp(prefix="agent-", dir=self.directory))
        with running_agent(own, settings=settings, command=command) as self.agent:
            yield self.agent

    @property
    def log(self) -> str:
        assert self.agent is not None
        return self.agent.log

    @property
    def process(self) -> psutil.Process:
        assert self.agent is not None
        return psutil.Process(self.agent.pid)

    def mounts(self) -> list[str]:
        """What of its sandboxes shows in the mount namespace of this test."""
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.directory) in line]

    def mounts_of_driver(self) -> int:
        """How many of its sandboxes show in the mount namespace of the agent's driver."""
        found = 0
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has been closed
                if str(fd.readlink()).startswith("mnt:["):
                    show = ["nsenter", f"--mount={fd}", "cat", "/proc/self/mountinfo"]
                    lines = subprocess.run(show, check=True, capture_output=True, text=True).stdout.splitlines()  # noqa: S603  ours
                    found += sum(str(self.directory) in line for line in lines)
        return found

    def cgroups(self) -> list[Path]:
        """Those of any sandbox of a driver whose directory is below ours."""
        from arcbox_guest.sandboxes.oci.driver import OciDriver  # noqa: PLC0415  only its name for them is wanted

        name = OciDriver(self.directory / "sandboxes")._cgroup
        roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
        return [path for root in roots if (root / name).is_dir() for path in (root / name).iterdir() if path.is_dir()]

    def files(self) -> list[str]:
        """Of sandboxes."""
        found = []
        for name in ("images", "records", "runtime", "sandboxes"):
            directory = self.directory / "sandboxes" / name
            found += [str(path) for path in directory.iterdir()] if directory.is_dir() else []
        return found

    def leftovers(self) -> list[str]:
        return [*self.mounts(), *map(str, self.cgroups()), *self.files()]

    @property
    def data_dir(self) -> str:
        """The agent's setting."""
        return str(self.directory / "sandboxes")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AgentClient]:
        assert self.agent is not None
        async with connect(self.agent.address) as client:
            yield client

    async def ready(self, client: AgentClient, sandbox_id: str = "box", **options: Unpack[SandboxOptions]) -> str:
        """Make a sandbox, and wait until it is ready."""
        options.setdefault("vcpus", 1)
        options.setdefault("memory_mib", 64)
        await client.sandbox_create(sandbox_id, wait=True, **options)
        return sandbox_id

    async def until_recorded(self, sandbox_id: str) -> None:
        """Wait until there is a record of a sandbox: nobody waits for the disk."""
        record = trio.Path(self.data_dir, "records", f"{sandbox_id}.json")
        with trio.fail_after(20):
            while not await record.exists():  # noqa: ASYNC110  as in `until`
                await trio.sleep(0.01)

    async def until_recorded_as(self, sandbox_id: str, state: str) -> None:
        """Wait until the record of a sandbox has a state."""
        record = trio.Path(self.data_dir, "records", f"{sandbox_id}.json")
        with trio.fail_after(20):
            while f'"state": "{state}"' not in await record.read_text():  # noqa: ASYNC110  as in `until`
                await trio.sleep(0.01)

    def kill_inits(self, sandbox_id: str = "") -> None:
        """Kill the init of a sandbox, or of every one, and wait until it is gone."""
        cgroups = [cgroup for cgroup in self.cgroups() if sandbox_id in ("", cgroup.name)]
        for cgroup in cgroups:
            if (cgroup / "cgroup.kill").exists():
                (cgroup / "cgroup.kill").write_text("1")
        for cgroup in cgroups:
            while (cgroup / "cgroup.procs").read_text():
                time.sleep(0.01)

    async def until(self, client: AgentClient, sandbox_id: str, state: str) -> None:
        """Wait until a sandbox is in a state."""
        with trio.fail_after(20):
            while (await client.sandbox_inspect(sandbox_id)).state != state:  # noqa: ASYNC110  the agent is not in here
                await trio.sleep(0.01)


@pytest.fixture
def machine(rootfs: Path) -> Iterator[Machine]:
    # Not tmp_path: the path of a socket has at most 107 bytes, and test names are long.
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        machine = Machine(Path(directory), rootfs)
        yield machine
        assert machine.mounts() == []
        assert machine.cgroups() == []


@pytest.fixture
def agent(machine: Machine) -> Iterator[RunningAgent]:
    with machine.running() as agent:
        yield agent


@pytest.fixture
async def client(machine: Machine, agent: RunningAgent) -> AsyncIterator[AgentClient]:
    async with machine.client() as client:
        yield client
