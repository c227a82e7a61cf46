"""Storage that does not answer: only what needs it waits, and not for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client.errors import ConnectionLostError, GuestTimedOutError
from arcbox_guest.sandboxes.files import SandboxFiles
from arcbox_guest.sandboxes.model import Action, Spec
from arcbox_guest.sandboxes.rooted_files import FileKind
from arcbox_guest.sandboxes.testing import FakeDriver, fake_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from arcbox_client import AgentClient, SandboxOptions
    from tests.sandboxes.conftest import Machine

MANY = 40


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a file system that answers nothing."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse, and root")
    with mounted(tmp_path / "hanging") as directory:
        yield directory


@contextmanager
def mounted(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    program = Path(__file__).with_name("hanging_file_system.py")
    with subprocess.Popen([sys.executable, program, directory], stdout=subprocess.PIPE, text=True) as server:  # noqa: S603  ours
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if said != "mounted\n":
                pytest.skip(f"FUSE can't be mounted here: {said}")
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", directory], check=False)  # noqa: S603, S607
            server.kill()


async def test_storage_that_hangs_holds_up_only_what_needs_it(machine: Machine, hanging: Path) -> None:
    refused: list[str] = []

    async def create(number: int) -> None:
        place = str(hanging / "below") if number % 2 else str(hanging)
        options: SandboxOptions = {"mounts": [(place, "/mnt")]} if number % 3 else {"rootfs": place}
        async with machine.client() as client:
            with pytest.raises((GuestTimedOutError, ConnectionLostError)):
                await client.sandbox_create(f"stuck{number}", **options)
        refused.append(f"stuck{number}")

    with machine.running():
        process = machine.process
        async with machine.client() as client:
            await machine.ready(client, "healthy")
            async with trio.open_nursery() as nursery:
                for number in range(MANY):
                    nursery.start_soon(create, number)
                await one_more(process, hanging, 0)
                await client.ping()
                await machine.ready(client, "other")
                await works(client, "other")
                await client.sandbox_remove("other", force=True)
                await works(client, "healthy")
            assert len(refused) == MANY
            await client.sandbox_remove("stuck0", force=True)
            assert [sandbox.id for sandbox in (await client.sandbox_list()).sandboxes] == ["healthy"]
        async with trio.open_nursery() as nursery:
            before = waiting(process, hanging)
            nursery.start_soon(create, MANY)
            await one_more(process, hanging, before)
            with trio.fail_after(20):  # its grace of 5 s, 5 s, and a machine that has other things to do
                process.send_signal(signal.SIGTERM)
                await trio.to_thread.run_sync(wait_until_gone, process, abandon_on_cancel=True)


async def test_files_that_hang_hold_up_their_own_sandbox_only(hanging: Path, nursery: trio.Nursery) -> None:
    manager = fake_manager(FakeDriver(files=hanging.parent))
    nursery.start_soon(manager.run)
    await manager.opened()
    files = SandboxFiles(manager)
    for name in ("stuck", "healthy"):
        with manager.subscribe(name, Action.READY) as ready:
            await manager.create(Spec(id=name))
            await anext(ready)
    async with trio.open_nursery() as stuck:
        for _ in range(MANY):
            stuck.start_soon(files.stat, "stuck", f"/{hanging.name}/below")
        limiter = files._limiter("stuck")
        while limiter.statistics().tasks_waiting < MANY - limiter.total_tokens:  # noqa: ASYNC110  it tells nobody
            await trio.sleep(0.01)
        assert (await files.stat("healthy", "/")).kind is FileKind.DIRECTORY
        stuck.cancel_scope.cancel()  # nobody waits for the threads
    nursery.cancel_scope.cancel()


def waiting(process: psutil.Process, storage: Path) -> int:
    """How many children of an agent wait for storage; those that were killed for it do so still."""
    return sum(str(storage) in " ".join(child.cmdline()) for child in process.children())


async def one_more(process: psutil.Process, storage: Path, before: int) -> None:
    while waiting(process, storage) <= before:  # noqa: ASYNC110  another process
        await trio.sleep(0.01)


async def works(client: AgentClient, sandbox_id: str) -> None:
    async with client.sandbox_exec(sandbox_id, ["echo", "it"]) as session:
        assert (await session.collect()).stdout == b"it\n"


def wait_until_gone(process: psutil.Process) -> None:
    """Wait for the end of a process with all of its threads; whose child it is reaps it."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
