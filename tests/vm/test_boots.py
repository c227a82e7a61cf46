"""The agent as PID 1 of a guest: no systemd, no udev, nothing mounted beforehand."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from arcbox_protocol import __version__

if TYPE_CHECKING:
    from tests.vm.conftest import Bench

AGENT: Final = "/usr/bin/arcbox-agent"

MOUNTS: Final = ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup")  # noqa: S108  the guest's


async def test_pid_1_sets_the_machine_up_and_serves_and_powers_off(bench: Bench) -> None:
    async with bench.boot(init=AGENT) as guest:
        assert (await guest.pong()).version == __version__
        for mount in MOUNTS:
            await guest.shell(f"mountpoint -q {mount}")
        assert await guest.shell("hostname") == "arcbox"
        assert "UP" in await guest.shell("ip link show lo")

        await guest.ctl("sandbox", "create", "--id", "box")
        assert await guest.ctl("sandbox", "run", "box", "echo", "hello") == "hello\n"
        await guest.ctl("sandbox", "rm", "-f", "box")
        await guest.shell("(setsid sleep 0.1 &)")  # an orphan, which PID 1 inherits
        await guest.until("! pgrep -x sleep && ! ps -eo stat | grep -q Z")

        async with guest.client() as client:
            await client.shutdown(timeout_seconds=10)
        assert await guest.powered_off() == 0
    bench.check_disk()


async def test_pid_1_outlives_its_agent_and_says_why_it_ended(bench: Bench) -> None:
    async with bench.boot(init=AGENT) as guest:
        await guest.pong()
        await guest.shell("pkill -KILL -P 1 -f 'arcbox-agent serve'")
        assert (await guest.pong()).version == __version__
        assert "the agent was killed by SIGKILL; it is started again" in guest.vm.console
        with suppress(OSError):  # the shell ends before it can answer
            await guest.shell("kill -TERM 1")
        assert await guest.powered_off() == 0
    bench.check_disk()


async def test_pid_1_keeps_the_machine_on_when_its_agent_can_not_start(bench: Bench) -> None:
    async with bench.boot(init=AGENT, inject={"etc/arcbox/agent.toml": b"listne = 1\n"}) as guest:
        await guest.on_console("the agent ended with status 2; it is started again")
        await guest.shell("echo >/etc/arcbox/agent.toml")
        assert (await guest.pong()).version == __version__
        assert "listne" in guest.vm.console
