"""The guest that the settings describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_agent import guest_setup
from arcbox_agent.guest_setup import build_guest
from arcbox_agent.settings import Clock, Disk, Power, Sandbox, Settings
from arcbox_guest.errors import NotSupportedError
from arcbox_guest.sandboxes.manager import SandboxManager
from arcbox_guest.sandboxes.model import ResourceLimits, Spec
from arcbox_guest.testing import FakeClock, FakePowerSwitch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("follows", [True, False])
def test_the_clock_follows_the_host_if_the_settings_say_so(*, follows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(guest_setup, "SystemClock", lambda: clock)
    guest = build_guest(Settings(clock=Clock(follow_host=follows)))
    guest.clock.follow(int(clock.time) + 1000)
    assert bool(clock.steps) is follows


async def test_the_machine_is_powered_off_by_the_switch_of_the_settings_after_its_sandboxes_were_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def stop_all(_manager: SandboxManager) -> None:
        await trio.lowlevel.checkpoint()
        assert switch.pressed == []
        stopped.set()

    switch, stopped = FakePowerSwitch(), trio.Event()
    monkeypatch.setattr(guest_setup, "power_switch", {"disabled": None, "auto": switch}.__getitem__)
    monkeypatch.setattr(SandboxManager, "stop_all", stop_all)
    sandbox = Sandbox(data_dir=str(tmp_path))
    with pytest.raises(NotSupportedError):
        build_guest(Settings(power=Power(off="disabled"), sandbox=sandbox)).power.check()
    power = build_guest(Settings(sandbox=sandbox)).power
    async with trio.open_nursery() as nursery:
        nursery.start_soon(power.run)
        power.begin(10)
        await switch.touched.wait()
        nursery.cancel_scope.cancel()
    assert stopped.is_set()


async def test_the_mounts_of_the_settings_are_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcbox_guest.disks.mounted_devices", lambda _mountinfo: {"/a": "1:1", "/b": "1:2"})
    guest = build_guest(Settings(disk=Disk(trim_mounts=("/b", "/c"))))
    assert [result.mount for result in await guest.disks.trim()] == ["/b"]


async def test_sandboxes_are_as_the_settings_say(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    settings = Sandbox(data_dir=str(tmp_path / "data"), rootfs=str(rootfs), default_vcpus=3, default_memory_mib=77)
    sandboxes = build_guest(Settings(sandbox=settings)).sandboxes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sandboxes.run)
        sandbox = await sandboxes.create(Spec(id="web"))
        nursery.cancel_scope.cancel()
    assert (sandbox.spec.rootfs, sandbox.spec.limits) == (str(rootfs), ResourceLimits(vcpus=3, memory_mib=77))
    assert (tmp_path / "data" / "records" / "web.json").exists()
