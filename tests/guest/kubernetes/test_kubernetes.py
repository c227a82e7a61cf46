"""Kubernetes's states and operations, with a stand-in for k3s and a runtime that has containerd already."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trio
from attrs import define, evolve, field

from arcbox_guest.child import PidFd
from arcbox_guest.daemon_process import DaemonProcess
from arcbox_guest.daemons import DaemonStatus
from arcbox_guest.errors import NotFoundError
from arcbox_guest.kubernetes import kubernetes as module
from arcbox_guest.kubernetes.cleanup import removal_of_chains
from arcbox_guest.kubernetes.kubernetes import Kubernetes, KubernetesConfig
from arcbox_guest.runtime.runtime import ContainerRuntime
from arcbox_guest.testing import absent_runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio.testing import MockClock

STAND_IN = Path(__file__).with_name("k3s_stand_in.py")


@define(eq=False)
class Runtime(ContainerRuntime):
    """Whose containerd is somebody else's."""

    started: int = field(init=False, default=0)

    async def start_containerd(self) -> None:
        await trio.lowlevel.checkpoint()
        self.started += 1


@define(eq=False)
class World:
    """A directory for k3s, and agents one after another."""

    directory: Path
    port: int

    def kubernetes(self) -> Kubernetes:
        absent = absent_runtime()
        config = evolve(
            absent.config,
            binary_dirs=(str(self.directory / "bin"),),
            state_dir=self.directory / "run",
            data_base=self.directory / "lib",
        )
        return Kubernetes(KubernetesConfig(api_port=self.port), Runtime(config, absent.volume))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Kubernetes]:
        """One life of an agent."""
        kubernetes = self.kubernetes()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kubernetes.run)
            yield kubernetes
            nursery.cancel_scope.cancel()

    def processes(self) -> list[psutil.Process]:
        """Those of k3s, helpers included."""
        program = str(self.directory / "bin/k3s")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if program in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        await trio.lowlevel.checkpoint()
        while not condition():  # noqa: ASYNC110  it is another process
            await trio.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/k3s"
    program.write_text(f"#!{sys.executable} -IS\n{STAND_IN.read_text()}")
    program.chmod(0o755)
    world = World(tmp_path, port)
    yield world
    for process in world.processes():
        process.kill()


@pytest.fixture
async def kubernetes(world: World) -> AsyncIterator[Kubernetes]:
    async with world.running() as kubernetes:
        yield kubernetes


async def test_start_stop_and_status(world: World, kubernetes: Kubernetes) -> None:
    state = await kubernetes.state()
    assert (state.running, state.api_ready, state.detail) == (False, False, "not running")
    with pytest.raises(NotFoundError):
        await kubernetes.kubeconfig()
    state = await kubernetes.start()
    assert (state.running, state.api_ready, state.detail) == (True, True, "k3s started")
    state = await kubernetes.start()
    assert (state.running, state.api_ready, state.detail) == (True, True, "k3s already running")
    assert await kubernetes.kubeconfig() == "apiVersion: v1\nkind: Config\n"
    assert (await kubernetes.state()).detail == "running"
    assert len(world.processes()) == 1
    assert await kubernetes.stop() == "k3s stopped"
    assert world.processes() == []
    assert await kubernetes.stop() == "k3s is not running"


async def test_k3s_gets_the_arguments_that_its_host_relies_on(world: World, kubernetes: Kubernetes) -> None:
    await kubernetes.start()
    arguments = world.processes()[0].cmdline()
    data = world.directory / "lib/rancher/k3s"
    wanted = {
        "server",
        "--container-runtime-endpoint=/nonexistent/containerd.sock",
        f"--data-dir={data}",
        f"--write-kubeconfig={data}/k3s.yaml",
        "--write-kubeconfig-mode=0600",
        "--disable=traefik",
        "--disable=servicelb",
    }
    assert wanted < set(arguments)


async def test_missing_programs_are_named(world: World, kubernetes: Kubernetes) -> None:
    (world.directory / "bin/k3s").unlink()
    state = await kubernetes.start()
    assert not state.running
    assert "has no k3s" in state.detail


async def test_one_that_ends_at_once_is_told_with_its_last_words(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K3S", "broken")
    state = await kubernetes.start()
    assert not state.running
    assert "no such luck" in state.detail
    assert (await kubernetes.state()).failed


async def test_one_whose_api_does_not_come_goes_on(
    world: World, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K3S", "mute")
    monkeypatch.setattr(module, "_API_WITHIN", 0.3)
    state = await kubernetes.start()
    assert (state.running, state.api_ready) == (True, False)
    assert "does not answer" in state.detail
    assert len(world.processes()) == 1


async def test_status_answers_while_a_start_waits(kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K3S", "mute")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kubernetes.start)
        await until(lambda: kubernetes._doing == "starting")
        state = await kubernetes.state()
        assert (state.running, state.api_ready, state.detail) == (state.running, False, "starting")
        nursery.cancel_scope.cancel()


async def test_status_keeps_its_deadline_when_the_api_hangs(world: World, autojump_clock: MockClock) -> None:
    kubernetes = world.kubernetes()
    kubernetes.daemon._process = DaemonProcess(os.getpid(), PidFd.open(os.getpid()), world.directory / "log")
    with socket.socket() as listening, socket.socket() as waiting:
        listening.bind(("127.0.0.1", world.port))
        listening.listen(0)  # has room for one; who comes then is not answered
        waiting.connect(("127.0.0.1", world.port))
        asked = trio.current_time()
        state = await kubernetes.state()
        assert trio.current_time() - asked < 0.35
        assert (state.running, state.api_ready) == (True, False)
    kubernetes.daemon._process.pidfd.close()


async def test_one_that_ignores_sigterm_is_killed(
    world: World, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K3S", "deaf")
    monkeypatch.setattr(module, "_STOP_TIMEOUT", 0.2)
    await kubernetes.start()
    assert await kubernetes.stop() == "k3s stopped"
    assert world.processes() == []


async def test_helpers_end_with_it(world: World, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K3S", "forking")
    await kubernetes.start()
    await until(lambda: len(world.processes()) == 2)
    await kubernetes.stop()
    await until(lambda: not world.processes())


async def test_the_next_agent_adopts_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STATUS_WAITS", 30)  # on a busy machine, too
    async with world.running() as first:
        await first.start()
    (process,) = world.processes()
    async with world.running() as second:
        assert (await second.state()).running
        state = await second.start()
        assert (state.running, state.detail) == (True, "k3s already running")
        assert world.processes() == [process]
        await second.stop()
    assert world.processes() == []


async def test_a_pid_file_that_names_another_process_ends_nobody(world: World) -> None:
    (world.directory / "run").mkdir()
    bystander = await trio.lowlevel.open_process(["sleep", "600"])
    try:
        (world.directory / "run/k3s.pid").write_text(f"{bystander.pid}\n1\n{world.directory}/bin/k3s\n")
        async with world.running() as kubernetes:
            assert await kubernetes.stop() == "k3s is not running"
            assert not (await kubernetes.state()).running
        assert bystander.poll() is None
    finally:
        bystander.kill()
        with trio.move_on_after(10, shield=True):
            await bystander.wait()


async def test_one_that_was_killed_is_started_again(world: World, kubernetes: Kubernetes) -> None:
    await kubernetes.start()
    (process,) = world.processes()
    process.send_signal(signal.SIGKILL)
    await until(lambda: kubernetes.daemon.restarts == 1 and kubernetes.daemon.status is DaemonStatus.READY)
    assert world.processes() not in ([], [process])


async def test_operations_that_race_are_done_one_after_the_other(world: World, kubernetes: Kubernetes) -> None:
    async with trio.open_nursery() as nursery:
        for operation in (kubernetes.start, kubernetes.stop, kubernetes.start, kubernetes.stop, kubernetes.start):
            nursery.start_soon(operation)
    assert len(world.processes()) <= 1
    await kubernetes.start()
    assert len(world.processes()) == 1


SAVED = """\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A KUBE-SERVICES -d 10.43.0.1/32 -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
"""


def test_only_kubernetes_s_chains_and_rules_are_removed() -> None:
    assert removal_of_chains(SAVED) == (
        "*nat\n"
        ":KUBE-SERVICES - [0:0]\n"
        ":CNI-HOSTPORT-DNAT - [0:0]\n"
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
        "-X KUBE-SERVICES\n"
        "-X CNI-HOSTPORT-DNAT\n"
        "COMMIT\n"
    )
    assert removal_of_chains(SAVED.partition("*filter")[2]) == ""
