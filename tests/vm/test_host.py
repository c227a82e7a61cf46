"""What the host does to the guest, and how a host's own tests reach it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.conftest import Guest

_PAUSE: Final = float(os.environ.get("ARCBOX_TEST_VM_SLEEP", "10"))
"""Seconds that the host sleeps. Nothing is waited for: the pause is what is tested."""

HARNESS: Final = """
import time

async def test_it_answers(arcbox_client):
    assert (await arcbox_client.ping("hello")).message == "pong: hello"

async def test_it_is_another_machine(arcbox_client):
    assert (await arcbox_client.system_info()).hostname == "arcbox"

async def test_its_files_are_there(arcbox_client):
    assert b"Debian" in await arcbox_client.mmap_read_file("/etc/os-release")

async def test_streams_and_requests_share_a_connection(arcbox_client):
    async with arcbox_client.sandbox_events():
        for number in range(100):
            await arcbox_client.ping(str(number))
"""


async def test_a_guest_goes_on_after_a_sleep_of_its_host(guest: Guest) -> None:
    await guest.pong(int(time.time()))
    restarts = await guest.restarts()
    async with guest.client() as client:
        assert (await client.ping()).message == "pong"
        await guest.vm.monitor("stop")
        await trio.sleep(_PAUSE)
        await guest.vm.monitor("cont")
        # The connection goes on, and its first ping mends the clock, which stood still.
        assert (await client.ping(timestamp_secs=int(time.time()))).message == "pong"
    off = abs(float(await guest.shell("date +%s.%N")) - time.time())
    assert off < _PAUSE - 1, off
    assert await guest.restarts() == restarts


async def test_the_pytest_plugin_of_a_harness_uses_the_agent_in_the_guest(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "test_harness.py").write_text(HARNESS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    await guest.pong()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = await trio.run_process(
        [*command, "--arcbox-connect", guest.vm.address, str(tmp_path)], cwd=tmp_path, capture_stdout=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
    assert b"4 passed" in done.stdout
