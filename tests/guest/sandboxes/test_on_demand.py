"""The driver that is loaded when it is first needed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from arcbox_guest.sandboxes.model import ExecSpec, Spec
from arcbox_guest.sandboxes.on_demand import OnDemandDriver
from arcbox_guest.sandboxes.testing import ROOTFS, FakeDriver

if TYPE_CHECKING:
    from pathlib import Path


class Loader:
    """Counts how often it was asked for the driver."""

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.loaded = 0

    def __call__(self) -> FakeDriver:
        assert threading.current_thread() is not threading.main_thread()
        self.loaded += 1
        return self.driver


async def test_where_there_never_were_sandboxes_nothing_is_loaded_to_find_out(tmp_path: Path) -> None:
    loader = Loader()
    driver = OnDemandDriver("oci", tmp_path / "never", loader)
    assert await driver.existing() == ()
    await driver.close()
    assert loader.loaded == 0


async def test_where_the_last_sandbox_was_removed_nothing_is_loaded_to_find_out(tmp_path: Path) -> None:
    loader = Loader()
    (tmp_path / "sandboxes").mkdir()
    assert await OnDemandDriver("oci", tmp_path, loader).existing() == ()
    assert loader.loaded == 0


async def test_what_a_former_agent_left_is_found(tmp_path: Path) -> None:
    loader = Loader()
    await loader.driver.create(Spec(id="old", rootfs=ROOTFS))
    (tmp_path / "sandboxes" / "old").mkdir(parents=True)
    assert await OnDemandDriver("oci", tmp_path, loader).existing() == ["old"]


async def test_everything_is_done_by_the_driver_which_is_loaded_once(tmp_path: Path) -> None:
    loader = Loader()
    driver = OnDemandDriver("oci", tmp_path / "not-yet", loader)
    await driver.create(Spec(id="box", rootfs=ROOTFS))
    async with driver.process("box", ExecSpec(argv=("true",))) as process:
        assert await process.wait() == 0
    assert (await driver.statistics("box")).processes == 1
    await driver.terminate("box")
    await driver.idle("box")
    loader.driver.sandboxes["box"].lose_init("it was killed")
    assert await driver.ended("box") == "it was killed"
    await driver.stop("box")
    await driver.destroy("box")
    await driver.close()
    assert loader.loaded == 1
    methods = [method for method, _ in loader.driver.calls]
    assert methods == ["create", "process", "statistics", "terminate", "idle", "ended", "stop", "destroy"]
