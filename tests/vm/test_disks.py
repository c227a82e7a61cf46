"""Disks and files that the host and the guest share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from arcbox_client.errors import RequestFailedError
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from tests.vm.conftest import Bench

_MIB: Final = 1024 * 1024


async def test_a_trim_gives_the_blocks_of_removed_files_back_to_the_host(bench: Bench) -> None:
    disk = bench.machine.directory / "data.raw"
    with disk.open("wb") as file:
        file.truncate(512 * _MIB)
    await trio.run_process(["mkfs.ext4", "-q", str(disk)])
    drive = ["-drive", f"if=virtio,format=raw,discard=unmap,cache=unsafe,file={disk}"]
    async with bench.boot(arguments=drive) as guest:
        await guest.pong()
        await guest.shell("mkdir -p /run/arcbox/data && mount /dev/vdb /run/arcbox/data")
        await guest.shell("head -c 64M /dev/urandom >/run/arcbox/data/large; sync; rm /run/arcbox/data/large; sync")
        before = disk.stat().st_blocks * 512
        assert before > 64 * _MIB
        assert "/run/arcbox/data" in await guest.ctl("trim")
        assert disk.stat().st_blocks * 512 < before - 48 * _MIB


async def test_a_file_of_the_host_may_be_truncated_while_it_is_read(bench: Bench) -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-share-") as directory:
        path, size = Path(directory, "shared"), 4 * _MIB
        async with bench.boot(shares={"host": Path(directory)}) as guest:
            await guest.pong()
            await guest.shell("mkdir -p /mnt/host && modprobe virtiofs && mount -t virtiofs host /mnt/host")
            path.write_bytes(b"x" * size)
            async with guest.client() as client, trio.open_nursery() as nursery:
                assert await client.mmap_read_file("/mnt/host/shared") == b"x" * size
                nursery.start_soon(_shrink, path, size)
                for _ in range(20):
                    try:
                        data = await client.mmap_read_file("/mnt/host/shared")
                    except RequestFailedError:  # a page had gone by the time that it was needed
                        continue
                    assert set(data) <= {0, ord("x")}
                nursery.cancel_scope.cancel()
            assert (await guest.pong()).version == __version__
            assert await guest.shell("systemctl show --value --property NRestarts arcbox-agent.service") == "0"


async def _shrink(path: Path, size: int) -> None:
    """Truncate a file and let it grow again, for ever."""
    while True:
        for length in (size // 3, 0, size):
            os.truncate(path, length)
            await trio.sleep(0.01)


async def test_a_guest_that_goes_on_and_off_five_times_keeps_its_records_and_its_disk_whole(bench: Bench) -> None:
    for number in range(5):
        async with bench.boot() as guest:
            await guest.pong()
            states = await guest.ctl("--json", "sandbox", "ls")
            assert states.count('"id"') == number, states
            await guest.ctl("sandbox", "create", "--id", f"box-{number}")
            if number % 2:
                await guest.vm.run("systemctl", "reboot", "--no-block")
            else:
                async with guest.client() as client:
                    await client.shutdown(timeout_seconds=20)
            assert await guest.powered_off() == 0
        bench.check_disk()
