"""Pings while an agent makes its first sandbox: what is loaded and set up for that must not hold up anybody else."""

from __future__ import annotations

import sys
import time
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING

from arcbox_guest.sandboxes.busybox import build
from bench.client import PING, Exchange, connect
from bench.figures import Target, compare
from bench.processes import agent
from bench.rounds import interleave
from bench.sandbox_host import SandboxHost, sandbox_settings
from bench.sandboxes import why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

_IDLE_SECONDS = 0.2


def measure(stage: Stage) -> list[Figure]:
    """The slowest ping from the request to its removal, in milliseconds, of agents that were just started."""
    if why := why_not():
        print(f"  left out: {why}", file=sys.stderr)
        return []
    build(stage.directory / "rootfs")
    contenders: dict[str, Callable[[], float]] = {
        "agent": partial(_slowest_ping, stage, _create_first),
        "without one": partial(_slowest_ping, stage, lambda _: time.sleep(_IDLE_SECONDS)),
    }
    samples = {name: taken.scaled(1e3) for name, taken in interleave(contenders, stage.rounds).items()}
    name = "slowest ping, first sandbox"
    return [compare(name, "ms", samples["agent"], samples["without one"], Target("value", "≤", 20))]


def _slowest_ping(stage: Stage, meanwhile: Callable[[Server], None]) -> float:
    """The seconds of the slowest ping while something is done with an agent that has just come to rest."""
    with agent(stage.directory, settings=sandbox_settings(stage)) as server:
        over, taken = Event(), [0.0]
        pinging = Thread(target=_ping_until, args=(server, over, taken))
        pinging.start()
        try:
            meanwhile(server)
        finally:
            over.set()
            pinging.join()
    return max(taken)


def _ping_until(server: Server, over: Event, taken: list[float]) -> None:
    with connect(server.path) as connection:
        exchange = Exchange.learn(connection, PING)
        while not over.is_set():
            began = time.perf_counter()
            exchange.one_by_one(connection, 1)
            taken.append(time.perf_counter() - began)
            time.sleep(0.0005)  # one after the other would take the processor that the sandbox needs


def _create_first(server: Server) -> None:
    with connect(server.path) as asking, connect(server.path) as listening:
        host, events = SandboxHost(asking), SandboxHost(listening)
        events.subscribe()
        host.create(events, "first")
        host.remove("first")
