"""Pings on many connections at once, and on new ones."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING

from bench.client import PING, Exchange, connect
from bench.figures import Samples, Target, compare
from bench.pings import BLOCKING, TRIO
from bench.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

_MANY = 16
_VERY_MANY = 256
_TAIL_PINGS = 20 * _VERY_MANY


def measure_many(stage: Stage) -> list[Figure]:
    """Thousands of pings per second on 16 and 256 connections, with one under way on each."""
    agent, echo, trio = stage.agent(), stage.peer("blocking_echo"), stage.peer("trio_echo")
    contenders = {
        BLOCKING: _waves(stage, echo, 1),
        str(_MANY): _waves(stage, agent, _MANY),
        str(_VERY_MANY): _waves(stage, agent, _VERY_MANY),
        TRIO: _waves(stage, trio, _VERY_MANY),
    }
    rates = {name: taken.per_millisecond() for name, taken in interleave(contenders, stage.rounds).items()}
    very_many = f"pings, {_VERY_MANY} connections"
    return [
        compare(f"pings, {_MANY} connections", "k/s", rates[str(_MANY)], rates[BLOCKING]),
        compare(very_many, "k/s", rates[str(_VERY_MANY)], rates[BLOCKING], Target("ratio", "≥", 0.4)),
        compare(very_many, "k/s", rates[str(_VERY_MANY)], rates[TRIO], Target("ratio", "≥", 0.9)),
    ]


def measure_tail(stage: Stage) -> list[Figure]:
    """The 99th percentile of a ping's round trip with 256 connections that each have one under way, beside the mean."""
    percentiles, means = [], []
    agent = stage.agent()
    connections = [stage.connect(agent) for _ in range(_VERY_MANY)]
    exchange = Exchange.learn(connections[0], PING)
    for _ in range(stage.rounds):
        taken = exchange.latencies(connections, _TAIL_PINGS)
        percentiles.append(statistics.quantiles(taken, n=100)[-1] * 1e3)
        means.append(statistics.mean(taken) * 1e3)
    name = f"99th percentile, {_VERY_MANY} connections"
    return [compare(name, "ms", Samples("", percentiles), Samples("mean", means), Target("ratio", "≤", 4.0))]


def _waves(stage: Stage, server: Server, width: int) -> Callable[[], float]:
    """Seconds for each ping, not for each wave of them."""
    connections = [stage.connect(server) for _ in range(width)]
    exchange = Exchange.learn(connections[0], PING)
    wave = stage.seconds_each(partial(exchange.in_waves, connections))
    return lambda: wave() / width


def measure_new(stage: Stage) -> list[Figure]:
    """Connect, ping, close."""
    servers = {"agent": stage.agent(), BLOCKING: stage.peer("blocking_echo"), TRIO: stage.peer("trio_echo")}
    contenders = {name: _visits(stage, server) for name, server in servers.items()}
    samples = {name: taken.scaled(1e6) for name, taken in interleave(contenders, stage.rounds).items()}
    targets = {TRIO: Target("ratio", "≤", 1.0)}
    return [
        compare("connect, ping, close", "µs", samples["agent"], samples[floor], targets.get(floor))
        for floor in (BLOCKING, TRIO)
    ]


def _visits(stage: Stage, server: Server) -> Callable[[], float]:
    with connect(server.path) as connection:
        exchange = Exchange.learn(connection, PING)

    def visit(count: int) -> None:
        for _ in range(count):
            with connect(server.path) as connection:
                exchange.one_by_one(connection, 1)

    return stage.seconds_each(visit)
