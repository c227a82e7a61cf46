"""The container runtime: the agent's start of both daemons beside a start by hand, and how long it takes to tell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_guest.daemon_process import Identity
from arcbox_protocol import FrameDecoder, MessageType, arcbox_v1, encode_frame
from bench import processes
from bench.client import connect, receive_frame
from bench.docker import ALONE, wait_until_it_answers
from bench.figures import Samples, Target, compare
from bench.processes import ServerFailedError, running, wait_until_listening
from bench.rounds import interleave

if TYPE_CHECKING:
    import socket

    from bench.figures import Figure
    from bench.stage import Stage

_NEEDED: Final = ("dockerd", "containerd", "runc")
_BY_HAND: Final = "by hand"
_ROUNDS: Final = 7
"""Each starts both daemons twice, on empty directories."""

_ASKED: Final = 100
"""Times in each state that lasts."""

_POLL: Final = 0.01
_CONTAINERD_CONFIG: Final = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
_ENSURE: Final = encode_frame(
    MessageType.EnsureRuntimeRequest, "", arcbox_v1.RuntimeEnsureRequest(start_if_needed=True).SerializeToString()
)
_WATCH: Final = encode_frame(
    MessageType.WatchReadinessRequest,
    "4bf92f3577b34da6",
    arcbox_v1.WatchReadinessRequest(start_runtime_if_needed=True).SerializeToString(),
)


def measure(stage: Stage) -> list[Figure]:
    """Two ways to start it, and many questions. Nothing where it can't be had."""
    missing = [name for name in _NEEDED if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        print(f"  left out: takes root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return []
    asked: list[float] = []
    contenders = {
        "agent": partial(_start_by_agent, stage.directory, asked),
        _BY_HAND: partial(_start_by_hand, stage.directory),
    }
    samples = interleave(contenders, min(_ROUNDS, stage.rounds))
    asked.sort()
    slowest, middle = asked[len(asked) * 99 // 100] * 1e3, asked[len(asked) // 2] * 1e3
    target = Target("value", "<", 50)
    return [
        compare(
            "containerd and dockerd, to ready", "s", samples["agent"], samples[_BY_HAND], Target("ratio", "<", 1.1)
        ),
        compare(
            "EnsureRuntime, 99th percentile", "ms", Samples("agent", [slowest]), Samples("median", [middle]), target
        ),
    ]


def _home(directory: Path, name: str) -> Path:
    home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
    (home / "containerd.toml").write_text(_CONTAINERD_CONFIG)
    (home / "daemon.json").write_text("{}")
    return home


def _start_by_agent(directory: Path, asked: list[float]) -> float:
    """Seconds until it is ready. How long the agent takes to tell, in that and other states, is added to `asked`."""
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
    }
    text = "\n[runtime]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    try:
        with (
            processes.agent(home, settings=text) as agent,
            connect(agent.path) as connection,
            connect(agent.path) as other,
        ):
            started = time.perf_counter()
            asked.append(_ask(other))  # which starts it
            connection.sendall(_WATCH)
            _wait_until_ready(connection)
            elapsed = time.perf_counter() - started
            for number in (signal.SIGCONT, signal.SIGSTOP):
                _signal(home / "state" / "dockerd.pid", number)
                for _ in range(_ASKED):
                    asked.append(_ask(other))
                    time.sleep(_POLL)
    finally:  # after the agent, which would start them again
        for daemon in ("dockerd", "containerd"):
            _signal(home / "state" / f"{daemon}.pid", signal.SIGCONT, signal.SIGTERM)
    return elapsed


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


def _ask(connection: socket.socket) -> float:
    """Have it ensured; the seconds until the reply."""
    started = time.perf_counter()
    connection.sendall(_ENSURE)
    receive_frame(connection)
    return time.perf_counter() - started


def _signal(pid_file: Path, *numbers: signal.Signals) -> None:
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
