"""Disks and files that the host and the guest share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio

from arcbox_client.errors import RequestFailedError
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.conftest import Guest

_MIB: Final = 1024 * 1024


async def test_a_trim_gives_the_blocks_of_removed_files_back_to_the_host(guest: Guest, data_disk: Path) -> None:
    await guest.pong()
    await guest.shell("mkdir -p /run/arcbox/data && mount /dev/vdb /run/arcbox/data")
    await guest.shell("head -c 64M /dev/urandom >/run/arcbox/data/large; sync; rm /run/arcbox/data/large; sync")
    before = data_disk.stat().st_blocks * 512
    assert before > 64 * _MIB
    assert "/run/arcbox/data" in await guest.ctl("trim")
    assert data_disk.stat().st_blocks * 512 < before - 48 * _MIB
    await guest.shell("umount /run/arcbox/data")


async def test_a_file_of_the_host_may_be_truncated_while_it_is_read(guest: Guest, host_directory: Path) -> None:
    path, size = host_directory / "shared", 4 * _MIB
    await guest.pong()
    restarts = await guest.restarts()
    await guest.shell("mkdir -p /mnt/host && modprobe virtiofs && mount -t virtiofs arcbox /mnt/host")
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
    assert await guest.restarts() == restarts


async def _shrink(path: Path, size: int) -> None:
    """Truncate a file and let it grow again, for ever."""
    while True:
        for length in (size // 3, 0, size):
            os.truncate(path, length)
            await trio.sleep(0.01)
