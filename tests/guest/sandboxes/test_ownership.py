"""One agent per data directory; the other one says so, and waits for its turn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.errors import UnavailableError
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import Spec
from arcbox_guest.sandboxes.ownership import DataDirectory
from arcbox_guest.sandboxes.records import Records
from arcbox_guest.sandboxes.testing import ROOTFS, FakeDriver

if TYPE_CHECKING:
    from pathlib import Path


def manager(data: DataDirectory, driver: FakeDriver) -> SandboxManager:
    return SandboxManager(driver, Records(data.path / "records"), EventHub(), Defaults(rootfs=ROOTFS), data=data)


async def test_a_directory_is_one_agents_until_it_lets_go(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    await first.claim(make=False)
    await first.claim(make=True)
    with pytest.raises(
        UnavailableError, match=f"another agent, process {os.getpid()}, has the sandboxes in {tmp_path}"
    ):
        await second.claim(make=False)
    first.release()
    await second.claim(make=False)
    second.release()


async def test_a_directory_that_is_not_there_is_made_for_the_first_sandbox(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "sandboxes")
    await data.claim(make=False)
    assert not data.path.exists()
    await data.claim(make=True)
    assert data.claimed
    data.release()


async def test_a_second_agent_leaves_the_sandboxes_alone_until_the_first_one_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = FakeDriver()
    first, second = (manager(DataDirectory(tmp_path), driver) for _ in range(2))
    async with trio.open_nursery() as others:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            await first.create(Spec(id="web"))
            others.start_soon(second.run)
            for refused in (second.opened(), second.create(Spec(id="db")), second.remove("web", force=True)):
                with pytest.raises(UnavailableError, match="one agent per data directory"):
                    await refused
            with pytest.raises(UnavailableError, match="one agent per data directory"):
                second.list()
            assert [record.message for record in caplog.records] == ["sandboxes are not available"]
            assert driver.sandboxes["web"].up
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            while not await is_open(second):  # noqa: ASYNC110  whoever asks too early is told so at once
                await trio.sleep(0.05)
        assert [sandbox.id for sandbox in second.list()] == ["web"]
        others.cancel_scope.cancel()


async def is_open(manager: SandboxManager) -> bool:
    try:
        await manager.opened()
    except UnavailableError:
        return False
    return True
