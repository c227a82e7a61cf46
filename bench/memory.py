"""Resident memory: idle, and what a thousand idle connections add to it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench import processes
from bench.client import PING, Exchange, connect
from bench.figures import Samples, Target, compare
from bench.pings import TRIO

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

_CONNECTIONS = 1000
_ROUNDS = 3  # it hardly differs from one start to the next
_BARE = "bare interpreter"


def measure(stage: Stage) -> list[Figure]:
    """MiB after the first ping, and MiB more once each of 1,000 connections has had one."""
    rounds = range(min(_ROUNDS, stage.rounds))
    agent = [_idle_and_grown(processes.agent(stage.directory)) for _ in rounds]
    trio = [_idle_and_grown(processes.peer("trio_echo", stage.directory)) for _ in rounds]
    bare = Samples(_BARE, [_bare_interpreter() for _ in rounds])
    agent_idle, agent_grown = (Samples("agent", numbers) for numbers in zip(*agent, strict=True))
    trio_idle, trio_grown = (Samples(TRIO, numbers) for numbers in zip(*trio, strict=True))
    return [
        compare("resident, idle", "MiB", agent_idle, bare, Target("value", "<", 40)),
        compare("resident, idle", "MiB", agent_idle, trio_idle),
        compare(f"{_CONNECTIONS:,} idle connections add", "MiB", agent_grown, trio_grown, Target("value", "<", 20)),
    ]


def _idle_and_grown(starting: AbstractContextManager[Server]) -> tuple[float, float]:
    with starting as server, ExitStack() as connections:
        ping = Exchange.learn(connections.enter_context(connect(server.path)), PING)
        idle = resident(server.pid)
        for _ in range(_CONNECTIONS):
            ping.one_by_one(connections.enter_context(connect(server.path)), 1)
        return idle, resident(server.pid) - idle


def _bare_interpreter() -> float:
    """One that waits for the end of its input."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size = resident(process.pid)
        process.communicate(b"\n")
    return size


def resident(pid: int) -> float:
    """VmRSS of proc_pid_status(5), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)
