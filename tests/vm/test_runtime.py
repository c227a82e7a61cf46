"""The container runtime of a guest that has Debian's docker.io: from nothing, and what containers can reach."""

from __future__ import annotations

import os
import shutil
import tarfile
from typing import TYPE_CHECKING, Final

import pytest
import trio

from arcbox_guest.sandboxes.busybox import build
from arcbox_protocol import arcbox_v1
from tests.vm.conftest import Disk, Guest
from tools.vm.image import image
from tools.vm.qemu import Machine

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_UNITS: Final = {
    f"etc/systemd/system/{unit}": "/dev/null" for unit in ("docker.service", "docker.socket", "containerd.service")
}
"""Masks them: the daemons are the agent's to start."""

CONNECTING: Final = """
import socket
for cid in (1, 2, 3):
    for port in (1024, 2375, 16443):
        try:
            with socket.socket(socket.AF_VSOCK) as connected:
                connected.settimeout(60)
                connected.connect((cid, port))
                print(connected.recv(1))
        except ConnectionResetError:
            print("reset")
"""
"""Docker lets containers have AF_VSOCK: whoever accepts such a connection has to close it at once."""

PROGRAMS: Final = [f"--volume=/{name}:/{name}:ro" for name in ("usr", "lib", "lib64")]


async def starts(guest: Guest) -> bool:
    """Whether the runtime gets ready. Containerd has 30 s for it, which a busy emulated processor may need twice."""
    async with guest.client() as client, client.watch_readiness(start_runtime_if_needed=True) as events:
        return [event.kind async for event in events][-1] == arcbox_v1.ReadinessEvent.RUNTIME_READY


@pytest.mark.skipif("ARCBOX_TEST_VM_DOCKER" not in os.environ, reason="takes minutes: ARCBOX_TEST_VM_DOCKER=1")
@pytest.mark.skipif(not all(map(shutil.which, ("docker", "busybox"))), reason="needs docker and a static busybox")
async def test_the_agent_alone_gets_from_nothing_to_containers_that_can_not_reach_it(tmp_path: Path) -> None:
    build(tmp_path / "rootfs")
    with tarfile.open(tmp_path / "rootfs.tar", "w") as tar:
        tar.add(tmp_path / "rootfs", ".")
    disk = Disk(Machine(image=image("docker.io"), directory=tmp_path, memory_mib=1536))
    # The kernel has AppArmor, without whose tools dockerd would start no container.
    async with disk.boot(inject=WITHOUT_UNITS, parameters="apparmor=0") as guest:
        await guest.pong()
        assert await guest.shell("pgrep -x dockerd || pgrep -x containerd || echo none") == "none"
        with trio.fail_after(600):
            while not await starts(guest):
                pass
        docker = ("docker-env", "docker")
        await guest.ctl(*docker, "import", str(tmp_path / "rootfs.tar"), "box")
        assert await guest.ctl(*docker, "run", "--rm", "box", "echo", "hello") == "hello\n"

        await guest.shell("modprobe vsock_loopback")
        said = await guest.ctl(*docker, "run", "--rm", *PROGRAMS, "box", "/usr/bin/python3", "-c", CONNECTING)
        assert len(said.splitlines()) == 9, said
        assert set(said.splitlines()) <= {"reset", "b''"}
        sockets = ("sh", "-c", "find / -xdev -type s 2>/dev/null; true")
        assert await guest.ctl(*docker, "run", "--rm", "box", *sockets) == ""

        async with guest.client() as client:
            await client.shutdown(timeout_seconds=20)
        assert await guest.powered_off() == 0
