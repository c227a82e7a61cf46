"""The container runtime: the agent's start of both daemons beside a start by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_guest.daemon_process import Identity
from arcbox_protocol import FrameDecoder, MessageType, arcbox_v1, encode_frame
from bench import processes
from bench.client import connect
from bench.docker import ALONE, wait_until_it_answers
from bench.figures import Target, compare
from bench.processes import ServerFailedError, running, wait_until_listening
from bench.rounds import interleave

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

_NEEDED: Final = ("dockerd", "containerd", "runc")
_BY_HAND: Final = "by hand"
_POLL: Final = 0.01
_CONTAINERD_CONFIG: Final = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
_WATCH: Final = encode_frame(
    MessageType.WatchReadinessRequest,
    "4bf92f3577b34da6",
    arcbox_v1.WatchReadinessRequest(start_runtime_if_needed=True).SerializeToString(),
)


def measure(stage: Stage) -> list[Figure]:
    """Two ways to start it. Nothing where it can't be had."""
    if not can_be_had():
        return []
    contenders = {
        "agent": partial(_start_by_agent, stage.directory),
        _BY_HAND: partial(_start_by_hand, stage.directory),
    }
    samples = interleave(contenders, stage.rounds)
    return [
        compare("containerd and dockerd, to ready", "s", samples["agent"], samples[_BY_HAND], Target("ratio", "<", 1.1))
    ]


def can_be_had() -> bool:
    """Whether there can be a runtime; what it takes is printed if not."""
    missing = [name for name in _NEEDED if not shutil.which(name)]
    possible = not missing and os.geteuid() == 0
    if not possible:
        print(f"  left out: takes root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
    return possible


def _home(directory: Path, name: str) -> Path:
    home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
    (home / "containerd.toml").write_text(_CONTAINERD_CONFIG)
    (home / "daemon.json").write_text("{}")
    return home


@contextmanager
def agent_with_runtime(directory: Path, **changed: object) -> Iterator[tuple[Server, Path]]:
    """An agent that can start both, and their state directory. They end after it.

    Args:
        directory: where all of it goes.
        changed: other settings in the section `runtime`.
    """
    home = _home(directory, "agent")
    settings = {
        "binary_dirs": [os.environ["PATH"]],
        "containerd_args": [f"--config={home}/containerd.toml"],
        "dockerd_args": [*ALONE, f"--config-file={home}/daemon.json"],
        "containerd_socket": f"{home}/containerd.sock",
        "docker_socket": f"{home}/docker.sock",
        "state_dir": f"{home}/state",
        "data_base": f"{home}/data",
        "data_device": "none",
        **changed,
    }
    text = "\n[runtime]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    try:
        with processes.agent(home, settings=text) as agent:
            yield agent, home / "state"
    finally:  # after the agent, which would start them again
        for daemon in ("dockerd", "containerd"):
            send_signals(home / "state" / f"{daemon}.pid", signal.SIGCONT, signal.SIGTERM)
        _unmount_below(home)


def _unmount_below(directory: Path) -> None:
    """What a dockerd leaves that was killed: its data directory, mounted on itself."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{directory}/")]):
        subprocess.run(["umount", "--lazy", mount], check=False)  # noqa: S607  util-linux


def _start_by_agent(directory: Path) -> float:
    with agent_with_runtime(directory) as (agent, _), connect(agent.path) as connection:
        started = time.perf_counter()
        connection.sendall(_WATCH)
        _wait_until_ready(connection)
        return time.perf_counter() - started


def _wait_until_ready(watch: socket.socket) -> None:
    """Take events until one says that it is ready. Several may come at once."""
    decoder = FrameDecoder()
    while received := watch.recv(4096):
        events = [arcbox_v1.ReadinessEvent.FromString(frame.payload) for frame in decoder.feed(received)]
        for event in events:
            if event.kind == arcbox_v1.ReadinessEvent.RUNTIME_FAILED:
                raise ServerFailedError(event.detail)
            if event.kind == arcbox_v1.ReadinessEvent.RUNTIME_READY:
                return
    raise ServerFailedError("the agent closed the connection")


def send_signals(pid_file: Path, *numbers: signal.Signals) -> None:
    """Send signals to a daemon of the agent's, if there is one; wait for its end after SIGTERM."""
    identity = Identity.read(pid_file)
    process = identity and identity.open()
    if process:
        for number in numbers:
            process.signal(number)
        while signal.SIGTERM in numbers and not process.ended():
            time.sleep(_POLL)
        process.discard()


def _start_by_hand(directory: Path) -> float:
    home = _home(directory, "hand")
    containerd = ["containerd", f"--address={home}/containerd.sock", f"--config={home}/containerd.toml"]
    containerd += [f"--root={home}/data/containerd", f"--state={home}/state/containerd"]
    dockerd = ["dockerd", f"--host=unix://{home}/docker.sock", f"--containerd={home}/containerd.sock", *ALONE]
    dockerd += [f"--data-root={home}/data/docker", f"--exec-root={home}/state/docker", f"--pidfile={home}/docker.pid"]
    dockerd += [f"--config-file={home}/daemon.json"]
    with ExitStack() as stack:
        started = time.perf_counter()
        process = stack.enter_context(running(containerd, home / "containerd.log"))
        wait_until_listening(home / "containerd.sock", process, home / "containerd.log")
        process = stack.enter_context(running(dockerd, home / "dockerd.log"))
        wait_until_it_answers(home / "docker.sock", process, home / "dockerd.log")
        return time.perf_counter() - started
