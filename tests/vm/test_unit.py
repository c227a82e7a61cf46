"""The agent as a unit of systemd, over AF_VSOCK. The last test powers the guest off."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from arcbox_protocol import __version__
from tests.vm.test_boots import STUBBORN
from tools.vm.image import ROOT

if TYPE_CHECKING:
    from tests.vm.conftest import Disk, Guest

WITHOUT_SOCKET = "systemctl mask --runtime --now arcbox-agent.socket && systemctl restart arcbox-agent.service"
WITH_SOCKET = (
    "systemctl unmask --runtime arcbox-agent.socket; systemctl stop arcbox-agent; systemctl start arcbox-agent.socket"
)

CONNECTING = """
import socket
for cid in (1, 2, 3):
    try:
        print(cid, socket.socket(socket.AF_VSOCK).connect((cid, 1024)))
    except OSError as error:
        print(cid, error)
"""


async def test_what_boots_before_left_is_all_known(guest: Guest, disk: Disk) -> None:
    await guest.pong()
    await disk.check_records(guest)


async def test_the_unit_serves_the_host_and_refuses_everybody_else(guest: Guest) -> None:
    assert (await guest.pong()).version == __version__
    assert await guest.shell("systemctl is-enabled arcbox-agent.service arcbox-agent.socket") == "enabled\nenabled"
    assert await guest.shell("cat /proc/$(systemctl show --value -p MainPID arcbox-agent)/oom_score_adj") == "-900"

    # Over the loopback a peer has CID 1, whoever it is.
    await guest.shell("modprobe vsock_loopback")
    connecting = "import socket; s = socket.socket(40); s.connect((1, 1024)); print(s.recv(9))"
    assert await guest.shell(f"python3 -c '{connecting}'") == "b''"
    # A warning is one in the journal, too.
    await guest.until("journalctl --unit arcbox-agent --priority warning --grep 'peer refused' --quiet")


async def test_a_sandbox_has_no_way_to_the_agent(guest: Guest) -> None:
    await guest.pong()
    await guest.shell("modprobe vsock_loopback")
    programs = [f"--mount=/{name}:/{name}:ro" for name in ("usr", "lib", "lib64")]
    await guest.ctl("sandbox", "create", "--id", "closed", *programs)
    said = await guest.ctl("sandbox", "run", "closed", "/usr/bin/python3", "-c", CONNECTING)
    assert len(said.splitlines()) == 3, said
    assert "None" not in said
    assert "agent.sock" not in await guest.ctl("sandbox", "run", "closed", "sh", "-c", "ls -R /run 2>&1; true")
    await guest.ctl("sandbox", "rm", "-f", "closed")


async def test_sandboxes_have_networks_and_snapshots(guest: Guest) -> None:
    await guest.pong()
    await guest.ctl("sandbox", "create", "--id", "first", "--network", "tap")
    await guest.ctl("sandbox", "create", "--id", "second", "--network", "tap")
    address = await guest.ctl("sandbox", "run", "first", "sh", "-c", "hostname -i")
    await guest.ctl("sandbox", "run", "second", "ping", "-c", "1", "-W", "60", address.split()[0])
    await guest.ctl("sandbox", "run", "second", "ping", "-c", "1", "-W", "60", "172.20.0.1")
    await guest.ctl("sandbox", "run", "first", "sh", "-c", "echo kept >/kept")
    snapshot = (await guest.ctl("sandbox", "checkpoint", "first")).strip()
    await guest.ctl("sandbox", "restore", "--id", "third", snapshot)
    assert await guest.ctl("sandbox", "run", "third", "cat", "/kept") == "kept\n"
    await guest.ctl("sandbox", "rm", "-f", "first", "second", "third")


async def test_the_agent_is_restarted_when_it_is_killed_and_listens_without_its_socket_too(guest: Guest) -> None:
    await guest.shell(WITHOUT_SOCKET)
    assert (await guest.pong()).version == __version__
    restarts = await guest.restarts()
    await guest.shell("systemctl kill --signal KILL arcbox-agent.service")
    assert (await guest.pong()).version == __version__
    assert await guest.restarts() == restarts + 1
    await guest.shell(WITH_SOCKET)


async def test_a_connection_starts_the_agent_that_its_socket_was_passed_to(guest: Guest) -> None:
    await guest.shell("systemctl stop arcbox-agent.service; systemctl is-active arcbox-agent.socket")
    assert (await guest.pong()).version == __version__
    assert await guest.shell("systemctl is-active arcbox-agent.service") == "active"


async def test_a_stuck_agent_is_restarted_by_the_watchdog(guest: Guest) -> None:
    await guest.pong()
    restarts = await guest.restarts()
    await guest.shell("systemctl kill --signal STOP arcbox-agent.service")
    await guest.until(f'test "$(systemctl show --value --property NRestarts arcbox-agent.service)" -gt {restarts}')
    assert (await guest.pong()).version == __version__
    await guest.shell("journalctl --unit arcbox-agent --grep 'Watchdog timeout' --quiet")


async def test_a_mistake_in_the_settings_is_mended_without_a_restart_by_hand(guest: Guest) -> None:
    await guest.shell("echo 'listne = 1' >/etc/arcbox/agent.toml; systemctl restart --no-block arcbox-agent.service")
    await guest.until("journalctl --unit arcbox-agent --grep listne --quiet")
    await guest.until('test "$(systemctl show --value --property NRestarts arcbox-agent.service)" -ge 1')
    # It would take minutes to see that systemd's limit of five starts does not hold.
    assert await guest.shell("systemctl show --value --property StartLimitIntervalUSec arcbox-agent.service") == "0"
    settings = (ROOT / "deploy" / "agent.toml").read_text()
    await guest.vm.output("sh", "-c", "cat >/etc/arcbox/agent.toml", input=settings)
    assert (await guest.pong()).version == __version__


async def test_a_ping_steps_a_wrong_clock(guest: Guest) -> None:
    await guest.pong()
    await guest.shell("date --set 2020-02-02T02:02:02")
    await guest.pong(int(time.time()))
    assert abs(int(await guest.shell("date +%s")) - time.time()) < 60


async def test_a_shutdown_is_in_order_whatever_runs_in_sandboxes(guest: Guest, disk: Disk) -> None:
    await guest.pong()
    await disk.create(guest, *STUBBORN)
    await guest.until("pgrep -f 'trap .. TERM'")
    async with guest.client() as client:
        await client.shutdown(timeout_seconds=20)
    assert await guest.powered_off() == 0
    disk.check_files()
