"""The servers under test: processes of their own, ended and swept up whatever happens to the benchmark."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
START_TIMEOUT = 30.0
"""Seconds that a server may take to be ready."""

_STOP_TIMEOUT = 10.0
_IDLE = 0.1
"""Seconds without any work after which a server is at rest."""

_APART = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')

_AGENT_TOML = """\
[clock]
follow_host = false

[power]
off = "disabled"

[disk]
trim_interval = 0
"""
"""Clock, power and disks of the machine that measures are not the agent's."""


class ServerFailedError(Exception):
    """A server ended, or was not ready in time. The text has the last of what it said."""


@frozen
class Server:
    """A running server and the Unix socket that it serves."""

    path: Path
    pid: int


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for as long as the context lasts. It inherits the affinity that this process has now."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(env or os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is for us; we end it
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


def _own_directory(name: str, directory: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))


@contextmanager
def peer(module: str, directory: Path, *arguments: str) -> Iterator[Server]:
    """One of `bench.peers`. Its socket listens before it runs, so there is nothing to wait for."""
    path = _own_directory(module, directory) / "peer.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        fd = listener.fileno()
        command = [sys.executable, "-m", f"bench.peers.{module}", str(fd), *arguments]
        with running(command, path.with_suffix(".log"), pass_fds=[fd]) as process:
            listener.close()
            yield Server(path, process.pid)


@contextmanager
def agent(directory: Path, *, settings: str = "", settled: bool = True, apart: bool = False) -> Iterator[Server]:
    """The agent, ready to serve; it leaves the machine's clock, power, disks and network alone.

    Args:
        directory: where its files go.
        settings: more sections of its settings, in TOML.
        settled: wait until it is also done with whatever it puts off until after its start.
        apart: run it in a network namespace of its own, where sandboxes may have a network.
    """
    directory = _own_directory("agent", directory)
    config, path, notify_path = (directory / f"agent.{kind}" for kind in ("toml", "sock", "notify"))
    network = f"\n[network]\nenabled = {json.dumps(apart)}\n"
    config.write_text(_AGENT_TOML + network + settings)
    serve = [sys.executable, "-m", "arcbox_agent", "serve", "--config", str(config), "--listen", f"unix:{path}"]
    command = [*_APART, *serve] if apart else serve
    foreign = {"ARCBOX_AGENT_CONFIG", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"}
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env["NOTIFY_SOCKET"] = str(notify_path)
    log = directory / "agent.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(notify_path))
        with running(command, log, env=env) as process:
            _wait_until_ready(notify, process, log)
            if settled:
                _wait_until_idle(process.pid)
            yield Server(path, process.pid)


def _wait_until_ready(notify: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    ended = os.pidfd_open(process.pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([notify.fileno(), ended], [], [], left)
            if notify.fileno() in readable and b"READY=1" in notify.recv(4096).splitlines():
                return
            if ended in readable:
                break
    finally:
        os.close(ended)
    raise ServerFailedError(f"the agent is not ready; it said:\n{last_lines(log)}")


def _wait_until_idle(pid: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    cpu_clock = ~pid << 3 | 2  # as clock_getcpuclockid(3) has it
    before, now = -1.0, time.clock_gettime(cpu_clock)
    while now != before:
        if time.monotonic() > deadline:
            raise ServerFailedError("the agent does not come to rest")
        time.sleep(_IDLE)
        before, now = now, time.clock_gettime(cpu_clock)


def qemu_guest_agent() -> str | None:
    """The command of Debian's qemu-guest-agent, where that is installed."""
    return shutil.which("qemu-ga", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


@contextmanager
def qemu_ga(command: str, directory: Path) -> Iterator[Server]:
    """QEMU's guest agent, without the requests that would touch this machine."""
    directory = _own_directory("qemu-ga", directory)
    path = directory / "qemu-ga.sock"
    log = path.with_suffix(".log")
    dangerous = "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-set-time"
    options = {"method": "unix-listen", "path": path, "statedir": directory, "block-rpcs": dangerous}
    options["pidfile"] = directory / "qemu-ga.pid"
    with running([command, *(f"--{name}={value}" for name, value in options.items())], log) as process:
        wait_until_listening(path, process, log)
        yield Server(path, process.pid)


def wait_until_listening(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """For servers that tell nobody when they are ready."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        time.sleep(0.005)
    raise ServerFailedError(f"{path.stem} does not listen; it said:\n{last_lines(log)}")


def last_lines(log: Path) -> str:
    """What a server said last."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
