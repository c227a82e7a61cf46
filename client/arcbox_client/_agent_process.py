"""A real agent as a child process, for tests: started, ready, stopped, and its log kept."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "arcbox_agent")  # -P: a harness may have a package `agent` of its own beside it

SETTINGS = """\
# Nothing that such an agent is asked for may change the machine that the tests run on.
clock.follow_host = false
power.off = "disabled"
disk.trim_mounts = []
network.enabled = false
sandbox.data_dir = "$DIRECTORY/sandboxes"
sandbox.stop_at_exit = true
runtime.binary_dirs = []
runtime.containerd_socket = "$DIRECTORY/containerd.sock"
runtime.docker_socket = "$DIRECTORY/docker.sock"
runtime.state_dir = "$DIRECTORY/runtime"
runtime.data_base = "$DIRECTORY/data"
runtime.data_device = "none"
"""

_OF_A_SERVICE_MANAGER = frozenset({"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"})
_READY_WITHIN = 20.0
_STOPPED_WITHIN = 10.0


class AgentStartError(Exception):
    """The agent did not get ready; the text has its log."""


@define
class RunningAgent:
    """An agent that serves."""

    address: str
    """What `connect` takes."""

    pid: int | None = None
    """None for an agent that runs elsewhere."""

    _log_path: Path | None = None
    _last_log: str = field(init=False, default="")

    @property
    def log(self) -> str:
        """What it has logged by now, and when it has ended, all; empty for an agent that runs elsewhere."""
        if self._log_path is not None and self._log_path.exists():
            self._last_log = self._log_path.read_text(errors="replace")
        return self._last_log


@contextmanager
def running_agent(
    directory: Path, *, settings: str = SETTINGS, command: Sequence[str] = COMMAND
) -> Iterator[RunningAgent]:
    """Run an agent on a Unix socket in `directory`, whose path must be short: 107 bytes with the socket's name.

    It is ready when the context begins. At its end it gets SIGTERM and after 10 s SIGKILL; so does what it left behind.

    Args:
        directory: for its socket, settings and log.
        settings: its settings file, in TOML, in which $DIRECTORY stands for the directory.
        command: the program; `serve --config FILE --listen ADDRESS` is added.

    Raises:
        AgentStartError: it ended, or was not ready within 20 s.
    """
    config, log_path, address = directory / "agent.toml", directory / "agent.log", f"unix:{directory}/agent.sock"
    config.write_text(settings.replace("$DIRECTORY", str(directory)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, log_path.open("wb") as log:
        notifications.bind(str(directory / "notify.sock"))
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_SERVICE_MANAGER}
        process = subprocess.Popen(  # noqa: S603  the command is the test's own
            [*command, "serve", "--config", str(config), "--listen", address],
            env={**environment, "NOTIFY_SOCKET": str(directory / "notify.sock")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        agent = RunningAgent(address, process.pid, log_path)
        try:
            _wait_until_ready(process, notifications, agent)
            yield agent
        finally:
            _stop(process)
            _ = agent.log  # the file goes with its directory


def _wait_until_ready(process: subprocess.Popen[bytes], notifications: socket.socket, agent: RunningAgent) -> None:
    """Wait for READY=1 of sd_notify(3), or the end of the process, whichever comes first."""
    end = os.pidfd_open(process.pid)
    deadline = time.monotonic() + _READY_WITHIN
    try:
        while True:
            ready, _, _ = select.select([notifications.fileno(), end], [], [], max(0, deadline - time.monotonic()))
            if notifications.fileno() in ready and b"READY=1" in notifications.recv(4096).split(b"\n"):
                return
            if end in ready or not ready:
                how = f"ended with {process.wait()}" if ready else f"was not ready within {_READY_WITHIN:g} s"
                raise AgentStartError(f"the agent {how}; its log:\n{agent.log or '(empty)'}")
    finally:
        os.close(end)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # it left nothing behind
        os.killpg(process.pid, signal.SIGKILL)
