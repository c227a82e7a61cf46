"""Files of real sandboxes, as a host reads, writes and watches them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
from attrs import define, field

from arcbox_client import ConnectionLostError, NotFoundError, PreconditionFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_client import AgentClient, FileChange
    from tests.sandboxes.conftest import Machine

LARGE = os.urandom(1 << 20) * 20 + b"the rest"


@define(eq=False)
class Endless:
    """Data of which there is always more."""

    begun: trio.Event = field(init=False, factory=trio.Event)
    """Set when some of it was sent."""

    _pieces: int = field(init=False, default=0)

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self._pieces += 1
        if self._pieces > 1:
            self.begun.set()
        return bytes(1 << 16)


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


async def test_what_is_written_is_there_for_processes_and_to_be_read(client: AgentClient) -> None:
    async with client.sandbox(vcpus=1, memory_mib=64) as box:
        await box.files.mkdir("/srv/data")
        await box.files.write("/srv/data/file", LARGE, mode=0o700)
        counted = await box.run(["sh", "-c", "wc -c < /srv/data/file; stat -c %a /srv/data/file"])
        assert counted.stdout == f"{len(LARGE)}\n700\n".encode()
        assert await box.files.read("/srv/data/file") == LARGE
        await box.run(["ln", "-s", "/etc/passwd", "/srv/data/link"])
        await box.files.move("/srv/data/file", "/srv/data/moved")
        link, moved = await box.files.list("/srv/data")
        assert (link.name, link.kind, link.symlink_target) == ("link", "symlink", "/etc/passwd")
        assert (moved.name, moved.size, moved.mode) == ("moved", len(LARGE), 0o700)
        assert b"root:" in await box.files.read("/srv/data/link")
        with pytest.raises(PreconditionFailedError):
            await box.files.remove("/srv")
        await box.files.remove("/srv", recursive=True)
        with pytest.raises(NotFoundError):
            await box.files.stat("/srv")


async def test_a_watch_tells_what_processes_do_and_ends_with_the_sandbox(client: AgentClient) -> None:
    async with client.sandbox("box", vcpus=1, memory_mib=64) as box, box.files.watch("/home", recursive=True) as watch:
        await box.run(["sh", "-c", "cd /home; mkdir -p a/b; echo > a/b/c"])
        seen: list[FileChange] = []
        while not seen or seen[-1].path != "/home/a/b/c":
            seen.append(await anext(watch))
        await box.run(["mv", "/home/a", "/home/z"])
        while seen[-1].kind != "renamed":
            seen.append(await anext(watch))
        assert {change.path for change in seen if change.kind == "created"} == {"/home/a", "/home/a/b", "/home/a/b/c"}
        assert (seen[-1].path, seen[-1].renamed_to) == ("/home/a", "/home/z")
        await client.sandbox_stop("box", timeout=1)
        assert [change async for change in watch] == []


async def test_an_agent_that_is_killed_leaves_the_old_file_and_nothing_else(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    data = Endless()

    async def write(client: AgentClient) -> None:
        with pytest.raises(ConnectionLostError):
            await client.file_write("box", "/mnt/file", data)

    with machine.running():
        async with machine.client() as client, trio.open_nursery() as nursery:
            await machine.ready(client, mounts=[(str(tmp_path), "/mnt")])
            nursery.start_soon(write, client)
            await data.begun.wait()
            machine.process.kill()
    assert contents(tmp_path) == {"file": "old"}
    with machine.running():
        async with machine.client() as client:
            await client.sandbox_remove("box", force=True)
