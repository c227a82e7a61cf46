"""Virtual machines with the guest image. One after the other: an emulated processor takes a whole one of the host's.

Booting is what takes the time, so `guest` is one that most tests share: each leaves it as it found it, but for the last
of all, which powers it off. Before that, on the same disk, come the boots of test_boots.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from attrs import define, evolve, field, frozen

from arcbox_client import connect
from arcbox_client.errors import ConnectError, ConnectionLostError
from tools.vm.image import ROOT, Image, image
from tools.vm.qemu import Machine, Vm, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from arcbox_client import AgentClient
    from arcbox_protocol import arcbox_v1

_PATIENCE: Final = 600.0
"""Seconds for whatever a guest has to do: a boot takes 10 on a quiet machine, and more than a minute on a busy one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here: `make test-vm` runs them, and nothing else does."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("vm")


@frozen
class Guest:
    """A guest that runs, and the host's ways to it."""

    vm: Vm

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AgentClient]:
        """A client of its agent."""
        async with connect(self.vm.address, timeout=_PATIENCE) as client:
            yield client

    async def pong(self, timestamp_secs: int = 0) -> arcbox_v1.AgentPingResponse:
        """The agent's answer to a ping, as soon as there is one."""
        with trio.fail_after(_PATIENCE):
            while True:
                try:
                    async with self.client() as client:
                        return await client.ping(timestamp_secs=timestamp_secs)
                except (ConnectError, ConnectionLostError):
                    await trio.sleep(0.1)  # nobody listens yet: nothing tells when somebody does

    async def ctl(self, *arguments: str) -> str:
        """What `arcboxctl` prints, which must succeed: once the agent is ready for it, and says 503 no more."""
        command = [sys.executable, "-m", "arcbox_client.cli", "--connect", self.vm.address, "--timeout", "600"]
        with trio.fail_after(_PATIENCE):
            while True:
                done = await trio.run_process(
                    [*command, *arguments], capture_stdout=True, capture_stderr=True, check=False
                )
                if b"(503)" not in done.stderr:
                    break
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode()

    async def shell(self, script: str) -> str:
        """The output of a shell script in the guest, which must succeed."""
        with trio.fail_after(_PATIENCE):
            return (await self.vm.output("sh", "-ec", script)).strip()

    async def restarts(self) -> int:
        """How often systemd has started the agent again by itself."""
        return int(await self.shell("systemctl show --value --property NRestarts arcbox-agent.service"))

    async def until(self, script: str) -> None:
        """Wait until a shell script in the guest succeeds."""
        with trio.fail_after(_PATIENCE):
            while (await self.vm.run("sh", "-ec", script)).status != 0:  # noqa: ASYNC110  it can only be asked
                await trio.sleep(0.2)

    async def on_console(self, text: str) -> None:
        """Wait until a text is on the console."""
        with trio.fail_after(_PATIENCE):
            await trio.lowlevel.checkpoint()
            while text not in self.vm.console:  # noqa: ASYNC110  it can only be looked for
                await trio.sleep(0.2)

    async def powered_off(self) -> int:
        """The exit status of QEMU, once it ends."""
        with trio.fail_after(_PATIENCE):
            return await self.vm.wait()


@define
class Disk:
    """A machine that is switched on and off, and what is to be found on its disk."""

    machine: Machine
    sandboxes: set[str] = field(factory=set)
    """Those that were created in former boots."""

    @asynccontextmanager
    async def boot(self, **changes: Any) -> AsyncIterator[Guest]:  # noqa: ANN401  fields of `Machine`
        """Switch the machine on, with some things changed. What it writes is there at its next boot."""
        async with running(evolve(self.machine, **changes)) as vm:
            try:
                yield Guest(vm)
            except BaseException:
                print(vm.console)  # noqa: T201  pytest shows it with the failure
                raise

    async def create(self, guest: Guest, *command: str) -> str:
        """Create a sandbox that has to be known after all boots that come; returns its id."""
        name = f"box-{len(self.sandboxes)}"
        await guest.ctl("sandbox", "create", "--id", name, *command)
        self.sandboxes.add(name)
        return name

    async def check_records(self, guest: Guest) -> None:
        """All sandboxes of former boots must be known, and no others."""
        async with guest.client() as client:
            assert {sandbox.id for sandbox in (await client.sandbox_list()).sandboxes} == self.sandboxes

    def check_files(self) -> None:
        """Have its file system checked, which must be clean without a journal to replay."""
        raw = self.machine.directory / "root.raw"
        subprocess.run(
            ["qemu-img", "convert", "-O", "raw", self.machine.directory / "root.qcow2", raw], check=True, timeout=300
        )
        said = subprocess.run(["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True, timeout=60).stdout
        assert "needs_recovery" not in said, said
        subprocess.run(["e2fsck", "-f", "-n", raw], check=True, timeout=300)
        raw.unlink()


@pytest.fixture(scope="session")
def guest_image() -> Image:
    """The guest image of this checkout."""
    for program in ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: make test-vm installs it")
    return image()


@pytest.fixture(scope="session")
def disk(guest_image: Image) -> Iterator[Disk]:
    """The machine of this session, which is off."""
    with tempfile.TemporaryDirectory(prefix="arcbox-vm-") as directory:
        yield Disk(Machine(image=guest_image, directory=Path(directory)))


@pytest.fixture(scope="session")
def host_directory() -> Iterator[Path]:
    """A directory of this machine's, which guests have as the virtiofs share `arcbox`."""
    with tempfile.TemporaryDirectory(prefix="arcbox-share-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def data_disk(disk: Disk) -> Path:
    """The shared guest's /dev/vdb: a sparse file with an ext4."""
    path = disk.machine.directory / "data.raw"
    with path.open("wb") as file:
        file.truncate(512 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def shared_vm(disk: Disk, host_directory: Path, data_disk: Path) -> Iterator[Vm]:
    """The machine, switched on, with systemd."""
    drive = ("-drive", f"if=virtio,format=raw,discard=unmap,cache=unsafe,file={data_disk}")
    shares = {"arcbox": host_directory, "checkout": ROOT}
    with _in_thread(evolve(disk.machine, arguments=drive, shares=shares, memory_mib=1536)) as vm:
        yield vm


@pytest.fixture
def guest(shared_vm: Vm) -> Iterator[Guest]:
    """The guest that tests share."""
    yield Guest(shared_vm)
    print(shared_vm.console)  # noqa: T201  pytest shows it with a failure


@contextmanager
def _in_thread(machine: Machine) -> Iterator[Vm]:
    """A machine that is on for longer than one test, and so longer than the event loop of any."""
    started: Queue[Vm | Exception] = Queue()
    stop = trio.Event()
    token: trio.lowlevel.TrioToken | None = None

    async def be_on() -> None:
        nonlocal token
        token = trio.lowlevel.current_trio_token()
        async with running(machine) as vm:
            started.put(vm)
            await stop.wait()

    def run() -> None:
        try:
            trio.run(be_on)
        except Exception as error:  # noqa: BLE001  raised where the thread was started
            started.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        vm = started.get()
        if isinstance(vm, Exception):
            raise vm
        yield vm
    finally:
        if token is not None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(stop.set)
        thread.join()
