"""Docker as a peer: a daemon of our own that touches no network, and one container to execute things in."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from bench.processes import START_TIMEOUT, ServerFailedError, last_lines, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NEEDED: Final = ("dockerd", "containerd", "docker")
ALONE: Final = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
_CONTAINER: Final = "box"
CONTAINER: Final = f"{_CONTAINER}:"
"""What a path in the container begins with, for `Container.copy`."""


@frozen
class Container:
    """A container that idles."""

    _docker: tuple[str, ...]
    """The client, and where its daemon is."""

    def execute(self, *command: str) -> None:
        """Run a command in it, as people do."""
        subprocess.run(
            [*self._docker, "exec", _CONTAINER, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
        )

    def copy(self, source: str, target: str) -> None:
        """Copy a file; the container's is `CONTAINER` and a path."""
        _call([*self._docker, "cp", "--quiet", source, target])

    def stream(self, *command: str) -> int:
        """Run a command in it; how many bytes it wrote."""
        received, buffer = 0, bytearray(1 << 20)
        with subprocess.Popen(
            [*self._docker, "exec", _CONTAINER, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            while count := os.readv(process.stdout.fileno(), [buffer]):
                received += count
        return received


def why_not() -> str:
    """Why there can't be one; empty if there can."""
    missing = [name for name in _NEEDED if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""


@contextmanager
def idle_container(directory: Path, rootfs: Path) -> Iterator[Container]:
    """A container with a root file system, and a daemon for it, for as long as the context lasts.

    Raises:
        ServerFailedError: the daemon does not start.
    """
    home = directory / "docker"
    home.mkdir()
    address = f"--host=unix://{home / 'docker.sock'}"
    docker = ("docker", address)
    options = [f"--{name}={home / name}" for name in ("data-root", "exec-root", "pidfile")]
    options += [f"--cgroup-parent=/{directory.name}", *ALONE]
    log = home / "log"
    with _cgroups(directory.name), running(["dockerd", address, *options], log) as daemon:
        wait_until_it_answers(home / "docker.sock", daemon, log)
        with subprocess.Popen(["tar", "-cC", rootfs, "."], stdout=subprocess.PIPE) as tar:  # noqa: S607
            _call([*docker, "import", "-", "rootfs"], tar.stdout.fileno() if tar.stdout else subprocess.DEVNULL)
        _call([*docker, "run", "--detach", "--network=none", f"--name={_CONTAINER}", "rootfs", "sleep", "1000000"])
        try:
            yield Container(docker)
        finally:
            _call([*docker, "rm", "--force", _CONTAINER])


@contextmanager
def _cgroups(name: str) -> Iterator[None]:
    """Remove what the daemon leaves of its cgroups."""
    try:
        yield
    finally:
        for cgroup in (*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
            with suppress(OSError):
                cgroup.rmdir()


def _call(command: Sequence[str], stdin: int = subprocess.DEVNULL) -> None:
    subprocess.run(command, stdin=stdin, stdout=subprocess.DEVNULL, check=True)


def wait_until_it_answers(path: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a daemon answers on its socket; raises ServerFailedError."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and daemon.poll() is None:
        if _answers(path):
            return
        time.sleep(0.01)
    raise ServerFailedError(f"dockerd does not answer; it said:\n{last_lines(log)}")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(4096)
        except OSError:
            return False
