"""One machine on and off, five times: with the agent as PID 1 (no systemd, no udev, nothing mounted), and as a unit.

Each boot finds the records of those before, and leaves a clean file system. Whatever is tested besides is tested in
these boots, because booting is what takes the time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from arcbox_protocol import __version__
from tools.vm.image import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.conftest import Disk

AGENT: Final = "/usr/bin/arcbox-agent"

MOUNTS: Final = ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup")  # noqa: S108  the guest's

STUBBORN: Final = ("--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
"""Ignores SIGTERM."""

DHCP: Final = {
    "usr/sbin/udhcpc": "/bin/busybox",
    "etc/udhcpc/default.script": b"""#!/bin/sh
case $1 in
deconfig) ip link set "$interface" up ;;
bound) ip addr add "$ip/$mask" dev "$interface" ;;
esac
""",
    "etc/modules-load.d/network.conf": b"virtio_net\n",
}
NETWORK: Final = ("-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=")


async def test_pid_1_sets_the_machine_up_and_powers_off_whatever_runs(disk: Disk, host_directory: Path) -> None:
    (host_directory / "greeting").write_text("from the host\n")
    shares = {"arcbox": host_directory, "users": host_directory}
    async with disk.boot(
        init=AGENT, inject=DHCP, arguments=NETWORK, shares=shares, parameters="arcbox.dhcp=eth0"
    ) as guest:
        assert (await guest.pong()).version == __version__
        for mount in MOUNTS:
            await guest.shell(f"mountpoint -q {mount}")
        assert await guest.shell("hostname") == "arcbox"
        assert "UP" in await guest.shell("ip link show lo")
        assert await guest.shell("cat /proc/sys/kernel/ctrl-alt-del") == "0"  # PID 1 is asked, by SIGINT
        assert await guest.shell("cat /arcbox/greeting /Users/greeting") == "from the host\nfrom the host"
        await guest.until("ip addr show eth0 | grep -q 'inet 10.0.2'")

        name = await disk.create(guest, *STUBBORN)
        assert await guest.ctl("sandbox", "exec", name, "echo", "hello") == "hello\n"
        await guest.shell("(setsid sleep 0.1 &)")  # an orphan, which PID 1 inherits
        await guest.until("! pgrep -xf 'sleep 0.1' && ! ps -eo stat | grep -q Z")

        async with guest.client() as client:
            await client.shutdown(timeout_seconds=10)
        assert await guest.powered_off() == 0
    disk.check_files()


async def test_pid_1_outlives_its_agent_says_why_it_ended_and_powers_off_when_it_is_told_to(disk: Disk) -> None:
    async with disk.boot(init=AGENT) as guest:
        await guest.pong()
        await disk.check_records(guest)
        await disk.create(guest)
        await guest.shell("pkill -KILL -P 1 -f 'arcbox-agent serve'")
        assert (await guest.pong()).version == __version__
        assert "the agent was killed by SIGKILL; it is started again" in guest.vm.console
        with suppress(OSError):  # the shell ends before it can answer
            await guest.shell("kill -TERM 1")
        assert await guest.powered_off() == 0
    disk.check_files()


async def test_pid_1_keeps_the_machine_on_when_its_agent_can_not_start_and_restarts_in_order(disk: Disk) -> None:
    async with disk.boot(init=AGENT, inject={"etc/arcbox/agent.toml": b"listne = 1\n"}) as guest:
        await guest.on_console("the agent ended with status 2; it is started again")
        assert "listne" in guest.vm.console
        settings = (ROOT / "deploy" / "agent.toml").read_text()
        await guest.vm.output("sh", "-c", "cat >/etc/arcbox/agent.toml", input=settings)
        assert (await guest.pong()).version == __version__
        await disk.check_records(guest)
        await disk.create(guest)
        with suppress(OSError):  # see above
            await guest.shell("kill -INT 1")
        assert await guest.powered_off() == 0  # QEMU is told not to go on after a restart
    disk.check_files()


async def test_systemd_restarts_the_machine_in_order(disk: Disk) -> None:
    async with disk.boot() as guest:
        await guest.pong()
        await disk.check_records(guest)
        await disk.create(guest)
        await guest.vm.run("systemctl", "reboot", "--no-block")
        assert await guest.powered_off() == 0
    disk.check_files()


async def test_records_are_whole_when_the_power_was_cut(disk: Disk) -> None:
    async with disk.boot(init=AGENT) as guest:
        await guest.pong()
        await disk.check_records(guest)
        await disk.create(guest)
        await guest.vm.monitor("quit")
        assert await guest.powered_off() == 0
    # What was known is checked by the next boot: test_unit.py's.
