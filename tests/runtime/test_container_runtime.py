"""From nothing to docker run, and what happens when something on the way is killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field

from arcbox_client import connect
from arcbox_guest.child import PidFd
from arcbox_protocol import arcbox_v1
from tests.runtime.conftest import SETTINGS_OF_RUNTIME, runtime_host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arcbox_client import AgentClient
    from tests.runtime.conftest import RuntimeHost

RUN = ("run", "--rm", "--network=none", "box")
RUN_WITH_STDIN = ("run", "--rm", "-i", "--network=none", "box")

LOGGED = 1000 * int(os.environ.get("ARCBOX_TEST_LOGS_MB", "32"))
"""Lines that a container writes to its log."""

PADDING = 1000 * "x"
"""Of each line."""


def write(lines: int) -> str:
    """A script."""
    return f"seq {lines} | sed s/$/{PADDING}/"


def written(lines: int) -> Iterator[bytes]:
    """What it writes."""
    return (f"{number}{PADDING}\n".encode() for number in range(1, lines + 1))


@define
class Lines:
    """Of a stream."""

    _stream: trio.abc.ReceiveStream
    _received: Iterator[bytes] = field(init=False, factory=lambda: iter(()))

    async def next(self) -> bytes:
        """The next one, with its end; what there is at the end of the stream."""
        if (line := next(self._received, b"")).endswith(b"\n"):
            return line
        while piece := await self._stream.receive_some():
            self._received = iter((line + piece).splitlines(keepends=True))
            if (line := next(self._received)).endswith(b"\n"):
                return line
        return line


async def ready(client: AgentClient) -> arcbox_v1.RuntimeEnsureResponse:
    """As a stock host: ask until it is."""
    while True:
        reply = await client.ensure_runtime()
        assert reply.status in ("starting", "reused")
        if reply.ready:
            return reply
        await trio.sleep(0.05)


async def kill(pid: int) -> None:
    """Kill a process that is no child, and wait until it is gone."""
    process = PidFd.open(pid)
    process.signal(signal.SIGKILL)
    await process.wait()
    process.close()


async def watch(address: str, *, start: bool) -> list[int]:
    async with connect(address) as client, client.watch_readiness(start_runtime_if_needed=start) as events:
        return [event.kind async for event in events]


async def until_status(
    client: AgentClient, *, docker: bool, containerd: bool = True
) -> arcbox_v1.RuntimeStatusResponse:
    while True:
        status = await client.runtime_status()
        if status.docker_ready is docker:
            return status
        await trio.sleep(0.02)


async def test_from_nothing_to_a_container_by_the_agent_alone() -> None:
    with runtime_host() as host, host.agent() as agent:
        async with connect(agent.address) as client:
            probed = await client.ensure_runtime(start_if_needed=False)
            assert (probed.status, probed.ready) == ("failed", False)
            statuses: set[str] = set()

            async def ensure() -> None:
                async with connect(agent.address) as another:
                    statuses.add((await another.ensure_runtime()).status)

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(ensure)
            assert statuses <= {"starting", "reused"}
            reply = await ready(client)
            assert reply.endpoint == "vsock:2375"
            assert reply.message == f"no data device: plain directories in {host.directory}/data"
            assert (host.processes("containerd"), host.processes("dockerd")) == (1, 1)
            status = await client.runtime_status()
            assert [(service.name, service.status) for service in status.services] == [
                ("containerd", "ready"),
                ("dockerd", "ready"),
            ]
        await host.docker("import", str(host.directory / "rootfs.tar"), "box")
        assert await host.docker(*RUN, "echo", "hello") == b"hello\n"
        assert await host.docker(*RUN_WITH_STDIN, "cat", stdin=b"to the end") == b"to the end"


async def test_the_next_agent_adopts_both_and_streams_of_other_proxies_go_on(host: RuntimeHost, box: None) -> None:
    with (
        host.agent("other", state_dir=str(host.directory / "other-state"), binary_dirs=[]) as other,
        host.agent() as agent,
    ):
        before = host.pid("containerd"), host.pid("dockerd")
        async with connect(other.address) as client:
            reused = await client.ensure_runtime(start_if_needed=False)
            assert reused.status == "reused"  # whoever started it
        command = f"{write(6000)}; read end; echo last"
        docker = host.docker_command(*RUN_WITH_STDIN, "sh", "-c", command, agent="other")
        async with trio.open_nursery() as nursery:
            run = await nursery.start(partial(trio.run_process, docker, stdin=-1, stdout=-1))
            assert agent.pid is not None
            first = await run.stdout.receive_some(1)
            os.kill(agent.pid, signal.SIGKILL)
            with host.agent("next") as successor:
                async with connect(successor.address) as client:
                    assert (await ready(client)).status == "reused"
                assert (host.pid("containerd"), host.pid("dockerd")) == before
                assert (host.processes("containerd"), host.processes("dockerd")) == (1, 1)
                await run.stdin.send_all(b"go on\n")
                output = bytes(first) + b"".join([data async for data in run.stdout])
        assert output == b"".join(written(6000)) + b"last\n"


async def test_logs_of_many_megabytes_lose_nothing(host: RuntimeHost, box: None) -> None:
    with host.agent():
        started = await host.docker("run", "-d", "--network=none", "box", "sh", "-c", f"{write(LOGGED)}; sleep 1000")
        name = started.decode().strip()
        async with trio.open_nursery() as nursery:
            # While it runs: at the end of a container dockerd 20.10 itself drops what a follower has not read yet.
            follow = partial(trio.run_process, host.docker_command("logs", "-f", name), stdout=-1, check=False)
            logs = await nursery.start(follow)
            lines = Lines(logs.stdout)
            for line in written(LOGGED):
                assert await lines.next() == line
            await host.docker("rm", "-f", name)
            assert await lines.next() == b""


@pytest.mark.parametrize("daemon", ["dockerd", "containerd"])
async def test_a_daemon_that_is_killed_is_reported_by_the_next_status_and_started_again(
    host: RuntimeHost, box: None, daemon: str
) -> None:
    with host.agent() as agent:
        async with connect(agent.address) as client:
            await ready(client)
            pid = host.pid(daemon)
            await kill(pid)
            status = await client.runtime_status()
            (service,) = [service for service in status.services if service.name == daemon]
            assert service.status == "error"
            await ready(client)
            assert host.pid(daemon) != pid
            again = await host.try_docker(*RUN, "echo", "again")
            assert (again.stdout, again.stderr) == (b"again\n", b"")


async def test_a_daemon_that_hangs_is_not_ready(host: RuntimeHost, box: None) -> None:
    with host.agent() as agent:
        async with connect(agent.address) as client:
            await ready(client)
            os.kill(host.pid("dockerd"), signal.SIGSTOP)
            try:
                status = await until_status(client, docker=False)
                assert "dockerd accepts connections, and has stopped answering" in status.detail
                assert (await client.ensure_runtime()).status == "failed"
            finally:
                os.kill(host.pid("dockerd"), signal.SIGCONT)
            await until_status(client, docker=True)


async def test_a_daemon_that_hangs_for_long_is_started_again_and_live_containers_go_on(
    host: RuntimeHost, box: None
) -> None:
    arguments = [*SETTINGS_OF_RUNTIME["runtime.dockerd_args"], "--live-restore"]
    with host.agent(hung_after_probes=2, dockerd_args=arguments) as agent:
        async with connect(agent.address) as client:
            await ready(client)
            await kill(host.pid("dockerd"))  # the next one has that argument
            await until_status(client, docker=True)
            name = (await host.docker("run", "-d", "--network=none", "box", "sleep", "1000")).decode().strip()
            began = await host.docker("inspect", "--format={{.State.Pid}} {{.State.StartedAt}}", name)
            pid = host.pid("dockerd")
            os.kill(pid, signal.SIGSTOP)
            status = await until_status(client, docker=False)
            while "did not answer 2 probes in a row, and was killed by SIGKILL" not in status.detail:
                status = await client.runtime_status()
                await trio.sleep(0.02)
            await ready(client)
            assert host.pid("dockerd") != pid
            assert await host.docker("inspect", "--format={{.State.Pid}} {{.State.StartedAt}}", name) == began
            await host.docker("rm", "-f", name)


async def test_readiness_is_watched_as_a_stream(host: RuntimeHost, box: None) -> None:
    with host.agent() as agent:
        kind = arcbox_v1.ReadinessEvent
        assert await watch(agent.address, start=False) == [kind.AGENT_READY]
        assert await watch(agent.address, start=True) == [kind.AGENT_READY, kind.RUNTIME_STARTING, kind.RUNTIME_READY]


async def test_a_runtime_that_is_not_installed_is_named_and_can_be_asked_for_again(
    host: RuntimeHost, tmp_path: Path
) -> None:
    sockets: dict[str, Any] = {
        "docker_socket": f"{tmp_path}/docker.sock",
        "containerd_socket": f"{tmp_path}/containerd.sock",
    }
    with host.agent("absent", **sockets, state_dir=f"{tmp_path}/state", binary_dirs=[str(tmp_path)]) as agent:
        kind = arcbox_v1.ReadinessEvent
        assert (await watch(agent.address, start=True))[-1] == kind.RUNTIME_FAILED
        async with connect(agent.address) as client:
            status = await client.runtime_status()
            missing = f"{tmp_path} has no containerd, containerd-shim-runc-v2, runc"
            assert status.detail == f"containerd can't be started: {missing}"
            again = await client.ensure_runtime()
            assert again.status == "starting"
            assert missing in again.message
