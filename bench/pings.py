"""Pings on one connection, one after the other and pipelined."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.client import PING, Exchange
from bench.figures import Target, compare
from bench.processes import qemu_ga, qemu_guest_agent
from bench.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

BLOCKING = "blocking socket echo"
TRIO = "Trio SocketStream echo"
QEMU_GA = "qemu-ga guest-ping"
WINDOW = 64
_GUEST_PING = b'{"execute": "guest-ping"}\n'


def measure(stage: Stage) -> list[Figure]:
    """Round trips against the echoes and qemu-ga; pings per second with a window of 64."""
    agent = stage.agent()
    contenders = {
        "agent": _round_trips(stage, agent),
        "pipelined": _pipelined(stage, agent),
        BLOCKING: _round_trips(stage, stage.peer("blocking_echo")),
        TRIO: _round_trips(stage, stage.peer("trio_echo")),
    }
    if command := qemu_guest_agent():
        contenders[QEMU_GA] = _round_trips(stage, stage.enter(qemu_ga(command, stage.directory)), _GUEST_PING)
    samples = interleave(contenders, stage.rounds)
    microseconds = {name: taken.scaled(1e6) for name, taken in samples.items()}
    targets = {TRIO: Target("ratio", "≤", 0.85)}
    figures = [
        compare("ping round trip", "µs", microseconds["agent"], microseconds[floor], targets.get(floor))
        for floor in (BLOCKING, TRIO, QEMU_GA)
        if floor in samples
    ]
    pipelined, one_by_one = samples["pipelined"].per_millisecond(), samples[BLOCKING].per_millisecond()
    target = Target("ratio", "≥", 0.8)
    return [*figures, compare(f"pings, window {WINDOW}", "k/s", pipelined, one_by_one, target)]


def _round_trips(stage: Stage, server: Server, request: bytes = PING) -> Callable[[], float]:
    connection = stage.connect(server)
    exchange = Exchange.learn(connection, request)
    return stage.seconds_each(partial(exchange.one_by_one, connection))


def _pipelined(stage: Stage, server: Server) -> Callable[[], float]:
    connection = stage.connect(server)
    exchange = Exchange.learn(connection, PING)
    return stage.seconds_each(partial(exchange.pipelined, connection, WINDOW))
