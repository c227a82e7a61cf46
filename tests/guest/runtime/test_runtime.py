"""What the container runtime tells, and how soon, whatever its daemons are doing."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from arcbox_guest.daemons import Daemon, DaemonStatus
from arcbox_guest.data_volume import DataVolume
from arcbox_guest.runtime.probes import Liveness, Probe, ask_docker
from arcbox_guest.runtime.runtime import ContainerRuntime, Phase, RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def runtime(tmp_path: Path) -> ContainerRuntime:
    """One whose programs are not installed."""
    config = RuntimeConfig(
        binary_dirs=(str(tmp_path),),
        containerd_socket=str(tmp_path / "containerd.sock"),
        docker_socket=str(tmp_path / "docker.sock"),
        state_dir=tmp_path / "state",
        data_base=tmp_path / "data",
    )
    return ContainerRuntime(config, DataVolume(tmp_path / "volume", tmp_path / "data", "none", tmp_path / "state"))


@pytest.fixture
def silent(runtime: ContainerRuntime) -> Iterator[list[socket.socket]]:
    """Both sockets accept connections, and nobody answers there."""
    with ExitStack() as stack:
        listeners = []
        for path in (runtime.config.containerd_socket, runtime.config.docker_socket):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()
            listeners.append(listener)
        yield listeners


async def test_a_start_that_is_asked_for_before_adoption_is_carried_out(runtime: ContainerRuntime) -> None:
    assert (await runtime.ensure(start=True)).phase is Phase.STARTING
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run)
        state = await runtime.start()
        assert state.phase is Phase.FAILED
        assert "containerd can't be started" in state.detail
        nursery.cancel_scope.cancel()


async def test_it_tells_in_time_whatever_the_daemons_do_and_though_nothing_answers(
    runtime: ContainerRuntime, silent: list[socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):  # before and after it is known what an earlier agent has started
            for status in DaemonStatus:
                runtime.containerd.status = runtime.dockerd.status = status
                began = trio.current_time()
                await runtime.ensure(start=False)
                assert trio.current_time() - began < 0.03
                await trio.sleep(0.3)
            nursery.start_soon(runtime.run)
        nursery.cancel_scope.cancel()


async def test_nobody_waits_for_an_answer_that_is_late_already(
    runtime: ContainerRuntime, silent: list[socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    probe = Probe(runtime.config.docker_socket, ask_docker)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe.run)
        await trio.sleep(1)
        began = trio.current_time()
        await probe.ask().wait()
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()


async def test_a_daemon_with_a_full_backlog_is_there(
    runtime: ContainerRuntime, autojump_clock: trio.testing.MockClock
) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(runtime.config.docker_socket)
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(runtime.config.docker_socket)
        probe = Probe(runtime.config.docker_socket, ask_docker)
        assert await probe.probe() is Liveness.ACCEPTS
        probe.last = Liveness.ANSWERS
        assert await probe.probe() is Liveness.HUNG


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("status", "killed"), [(DaemonStatus.STARTING, 0), (DaemonStatus.STOPPING, 0), (DaemonStatus.READY, 3)]
)
async def test_only_a_daemon_that_was_ready_is_killed_for_silence_and_the_next_one_has_as_many_probes(
    runtime: ContainerRuntime,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    status: DaemonStatus,
    killed: int,
) -> None:
    """A daemon that was just started may take connections long before it answers."""
    kills: list[str] = []
    monkeypatch.setattr(Daemon, "kill", lambda _daemon, fault: kills.append(fault))
    probe = Probe(runtime.config.docker_socket, ask_docker)
    probe.last = Liveness.ANSWERS
    runtime.dockerd.status = status
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runtime._kill_hung, runtime.dockerd, probe)
        nursery.start_soon(probe.run)
        probes = 3 * runtime.config.hung_after_probes
        await trio.sleep(4 * probes + 1)  # each takes 2 s, and so does the time to the next
        nursery.cancel_scope.cancel()
    assert kills == ["did not answer 15 probes in a row"] * killed
