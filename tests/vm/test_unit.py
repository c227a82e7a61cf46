"""The agent as a unit of systemd, in a guest, over AF_VSOCK."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from arcbox_protocol import __version__

if TYPE_CHECKING:
    from tests.vm.conftest import Bench, Guest

NO_SOCKET = {"etc/systemd/system/arcbox-agent.socket": "/dev/null"}
"""Masks the unit: the agent then listens by itself."""

CONNECTING = """
import socket
for cid in (1, 2, 3):
    try:
        print(cid, socket.socket(socket.AF_VSOCK).connect((cid, 1024)))
    except OSError as error:
        print(cid, error)
"""


async def restarts(guest: Guest) -> int:
    return int(await guest.shell("systemctl show --value --property NRestarts arcbox-agent.service"))


async def test_the_unit_serves_the_host_restarts_and_refuses_everybody_else(bench: Bench) -> None:
    """One boot for several questions: booting is what takes the time."""
    async with bench.boot(inject=NO_SOCKET) as guest:
        assert (await guest.pong()).version == __version__
        assert await guest.shell("systemctl is-enabled arcbox-agent.service") == "enabled"
        assert await guest.shell("cat /proc/$(systemctl show --value -p MainPID arcbox-agent)/oom_score_adj") == "-900"

        # Over the loopback a peer has CID 1, whoever it is.
        await guest.shell("modprobe vsock_loopback")
        connecting = "import socket; s = socket.socket(40); s.connect((1, 1024)); print(s.recv(9))"
        assert await guest.shell(f"python3 -c '{connecting}'") == "b''"
        # A warning is one in the journal, too.
        await guest.until("journalctl --unit arcbox-agent --priority warning --grep 'peer refused' --quiet")

        await guest.shell("systemctl kill --signal KILL arcbox-agent.service")
        assert (await guest.pong()).version == __version__
        assert await restarts(guest) == 1


async def test_a_sandbox_has_no_way_to_the_agent(bench: Bench) -> None:
    async with bench.boot() as guest:
        await guest.pong()
        await guest.shell("modprobe vsock_loopback")
        programs = [f"--mount=/{name}:/{name}:ro" for name in ("usr", "lib", "lib64")]
        await guest.ctl("sandbox", "create", "--id", "box", *programs)
        said = await guest.ctl("sandbox", "run", "box", "/usr/bin/python3", "-c", CONNECTING)
        assert len(said.splitlines()) == 3, said
        assert "None" not in said
        assert "agent.sock" not in await guest.ctl("sandbox", "run", "box", "sh", "-c", "ls -R /run 2>&1; true")


async def test_a_stuck_agent_is_restarted_by_the_watchdog(bench: Bench) -> None:
    soon = b"[Service]\nWatchdogSec=5\n"
    async with bench.boot(inject={"etc/systemd/system/arcbox-agent.service.d/watchdog.conf": soon}) as guest:
        await guest.pong()
        await guest.shell("systemctl kill --signal STOP arcbox-agent.service")
        await guest.until('test "$(systemctl show --value --property NRestarts arcbox-agent.service)" = 1')
        assert (await guest.pong()).version == __version__


async def test_a_connection_starts_the_agent_that_its_socket_was_passed_to(bench: Bench) -> None:
    async with bench.boot() as guest:
        await guest.until("systemctl is-active arcbox-agent.service")
        assert await guest.shell("systemctl is-enabled arcbox-agent.socket") == "enabled"
        await guest.shell("systemctl stop arcbox-agent.service")
        assert (await guest.pong()).version == __version__
        assert await guest.shell("systemctl is-active arcbox-agent.service") == "active"


async def test_a_mistake_in_the_settings_is_mended_without_a_restart_by_hand(bench: Bench) -> None:
    async with bench.boot(inject={"etc/arcbox/agent.toml": b"listne = 1\n", **NO_SOCKET}) as guest:
        await guest.until('test "$(systemctl show --value --property NRestarts arcbox-agent.service)" -gt 6')
        await guest.shell("journalctl --unit arcbox-agent --grep listne --quiet")
        await guest.shell("echo >/etc/arcbox/agent.toml")
        assert (await guest.pong()).version == __version__


async def test_a_ping_steps_a_wrong_clock_and_a_shutdown_is_in_order(bench: Bench) -> None:
    async with bench.boot(arguments=["-rtc", "base=2020-02-02T02:02:02"]) as guest:
        await guest.pong()
        assert int(await guest.shell("date +%s")) < time.time() - 60
        await guest.pong(int(time.time()))
        assert abs(int(await guest.shell("date +%s")) - time.time()) < 60

        await guest.ctl("sandbox", "create", "--id", "box", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        await guest.until("pgrep -f 'trap .. TERM'")
        async with guest.client() as client:
            await client.shutdown(timeout_seconds=20)
        assert await guest.powered_off() == 0
    bench.check_disk()
