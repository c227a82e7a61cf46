"""The relay to the Docker API against a raw one, and against no relay at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench import processes
from bench.client import connect, transfer
from bench.figures import Target, compare
from bench.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.figures import Figure
    from bench.stage import Stage

_MEBIBYTE = 1 << 20
_SIZE = 32 * _MEBIBYTE
_REQUEST = b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"
_RELAY = "splice relay"
_HOP = "direct + Trio hop"


def measure(stage: Stage) -> list[Figure]:
    """Much through one connection, and little through many."""
    return [_throughput(stage), _new_connections(stage)]


def _throughput(stage: Stage) -> Figure:
    file = stage.directory / "file"
    file.write_bytes(os.urandom(_SIZE))
    proxied = _proxy(stage, "bulk", stage.peer("sendfile", str(file)).path)
    relayed = stage.peer("relay", str(stage.peer("sendfile", str(file)).path)).path
    contenders = {"agent": _transfers(stage, proxied), _RELAY: _transfers(stage, relayed)}
    samples = interleave(contenders, stage.rounds)
    rates = {name: taken.per_second().scaled(_SIZE / 1e6) for name, taken in samples.items()}
    return compare("proxy, 32 MiB", "MB/s", rates["agent"], rates[_RELAY], Target("ratio", "≥", 0.8))


def _new_connections(stage: Stage) -> Figure:
    """Beside a direct request, and another one to a plain Trio server: what one hop costs that wakes up a scheduler."""
    echo = stage.peer("blocking_echo").path
    contenders = {
        "agent": _requests(stage, _proxy(stage, "new", echo)),
        _HOP: _requests(stage, echo, stage.peer("trio_echo").path),
    }
    samples = {name: taken.scaled(1e6) for name, taken in interleave(contenders, stage.rounds).items()}
    target = Target("ratio", "≤", 1.3)
    return compare("proxy: connect, request", "µs", samples["agent"], samples[_HOP], target)


def _proxy(stage: Stage, name: str, target: Path) -> Path:
    path = stage.directory / f"{name}.sock"
    settings = f'\n[proxy.docker]\nlisten = ["unix:{path}"]\ntarget = "unix:{target}"\n'
    directory = stage.directory / name
    directory.mkdir()
    stage.enter(processes.agent(directory, settings=settings))
    return path


def _transfers(stage: Stage, path: Path) -> Callable[[], float]:
    connection, buffer = stage.enter(connect(path)), bytearray(256 * 1024)

    def transfers(count: int) -> None:
        for _ in range(count):
            transfer(connection, b"x", _SIZE, buffer)

    return stage.seconds_each(transfers)


def _requests(stage: Stage, *paths: Path) -> Callable[[], float]:
    def requests(count: int) -> None:
        for _ in range(count):
            for path in paths:
                with connect(path) as connection:
                    connection.sendall(_REQUEST)
                    connection.recv(4096)

    return stage.seconds_each(requests)
