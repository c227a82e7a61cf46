"""Executions and files of sandboxes: a start and its end beside a plain run, bytes beside `docker cp`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from bench import docker
from bench.figures import Samples, Target, compare
from bench.rounds import interleave
from bench.sandbox_host import SandboxHost, file_chunks, sandbox_agent
from bench.sandboxes import idle_container, repeat, why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.docker import Container
    from bench.figures import Figure
    from bench.stage import Stage

_SIZE = 64 << 20
_RUN = "run"
_COPY = "docker cp, the better way"


def measure(stage: Stage) -> list[Figure]:
    """What executions and files cost. Nothing where there can't be sandboxes."""
    if why := why_not():
        print(f"  left out: {why}", file=sys.stderr)
        return []
    _agent, host, events = sandbox_agent(stage)
    host.create(events, "box", memory_mib=256)
    container = idle_container(stage, stage.directory / "rootfs")
    return [_executing(stage, host), *(_copying(stage, host, container) if container is not None else ())]


def _executing(stage: Stage, host: SandboxHost) -> Figure:
    contenders = {
        "agent": stage.seconds_each(lambda times: repeat(times, lambda: host.execute("box", "/bin/true"))),
        _RUN: stage.seconds_each(lambda times: repeat(times, lambda: host.run("box", "/bin/true"))),
    }
    samples = {name: taken.scaled(1e3) for name, taken in interleave(contenders, stage.rounds).items()}
    return compare("execution, start to exit", "ms", samples["agent"], samples[_RUN], Target("ratio", "≤", 1.5))


def _copying(stage: Stage, host: SandboxHost, container: Container) -> list[Figure]:
    ours, theirs = str(stage.directory / "file"), f"{docker.CONTAINER}/file"
    (stage.directory / "file").write_bytes(bytes(_SIZE))
    chunks = file_chunks(_SIZE)

    def rate(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return _SIZE / (time.perf_counter() - began) / 1e6

    contenders = {
        "write": lambda: rate(lambda: host.write_file("box", "/file", chunks)),
        "read": lambda: rate(lambda: host.read_file("box", "/file")),
        "in": lambda: rate(lambda: container.copy(ours, theirs)),
        "out": lambda: rate(lambda: container.copy(theirs, ours)),
    }
    samples = interleave(contenders, stage.rounds)
    floor = Samples(_COPY, [max(pair) for pair in zip(samples["in"].numbers, samples["out"].numbers, strict=True)])
    return [
        compare(
            f"sandbox, {name} a file", "MB/s", Samples("agent", samples[name].numbers), floor, Target("ratio", "≥", 0.5)
        )
        for name in ("write", "read")
    ]
