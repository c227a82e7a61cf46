"""Virtual machines with the guest image. One after the other: an emulated processor takes a whole one of the host's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from attrs import evolve, frozen

from arcbox_client import connect
from arcbox_client.errors import ConnectError, ConnectionLostError
from tools.vm.image import Image, image
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


@frozen
class Bench:
    """Makes virtual machines for one test."""

    machine: Machine

    @asynccontextmanager
    async def boot(self, **changes: Any) -> AsyncIterator[Guest]:  # noqa: ANN401  fields of `Machine`
        """Switch the machine on, with some things changed. What it has written is there at its next boot."""
        async with running(evolve(self.machine, **changes)) as vm:
            try:
                yield Guest(vm)
            except BaseException:
                print(vm.console)  # noqa: T201  pytest shows it with the failure
                raise

    def check_disk(self) -> None:
        """Have its file system checked, which must be clean without a journal to replay."""
        raw = self.machine.directory / "root.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", self.machine.directory / "root.qcow2", raw], check=True)
        said = subprocess.run(["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True).stdout
        assert "needs_recovery" not in said, said
        subprocess.run(["e2fsck", "-f", "-n", raw], check=True)
        raw.unlink()


@pytest.fixture(scope="session")
def guest_image() -> Image:
    """The guest image of this checkout."""
    for program in ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: make test-vm installs it")
    return image()


@pytest.fixture
def bench(guest_image: Image) -> Iterator[Bench]:
    """A new machine, which is off."""
    with tempfile.TemporaryDirectory(prefix="arcbox-vm-") as directory:
        yield Bench(Machine(image=guest_image, directory=Path(directory)))
