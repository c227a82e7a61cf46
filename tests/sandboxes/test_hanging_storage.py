"""Storage that does not answer: only what needs it waits, and not for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

MANY = 40

QUICK_TO_GIVE_UP = """
import sys
from arcbox_guest.sandboxes import life
life.PATIENCE = 3.0
life.Life._attempt.__kwdefaults__["patience"] = 3.0
from arcbox_agent.__main__ import main
sys.exit(main())
"""


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
    with machine.running(command=(sys.executable, "-P", "-c", QUICK_TO_GIVE_UP)):
        process = machine.process
        async with machine.client() as client:
            await machine.ready(client, "healthy")
            places = (str(hanging), str(hanging / "below"))
            for number in range(MANY):
                await client.sandbox_create(f"stuck{number}", rootfs=places[number % 2])
            mounts = [(str(hanging / "below"), "/mnt")]
            await client.sandbox_create("mount", mounts=mounts)
            await client.ping()
            await machine.ready(client, "other")  # what is healthy can still be made, used and removed
            await works(client, "other")
            await client.sandbox_remove("other", force=True)
            await client.sandbox_remove("stuck0", force=True)
            await machine.until(client, "stuck1", "failed")
            await machine.until(client, "mount", "failed")
            await client.sandbox_remove("mount", force=True)
            await works(client, "healthy")
            await client.sandbox_create("late", rootfs=places[0])
            with trio.fail_after(10):  # the grace of 5 s, and 5 s
                process.send_signal(signal.SIGTERM)
                await trio.to_thread.run_sync(gone, process, abandon_on_cancel=True)


async def works(client: AgentClient, sandbox_id: str) -> None:
    async with client.sandbox_exec(sandbox_id, ["echo", "it"]) as session:
        assert (await session.collect()).stdout == b"it\n"


def gone(process: psutil.Process) -> None:
    """Wait until it has ended, with all of its threads; whose child it is reaps it."""
    while process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1):
        os.sched_yield()
