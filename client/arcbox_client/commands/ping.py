"""arcboxctl ping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import trio
from attrs import define, field

from arcbox_client.commands._invocation import Seconds, common_options, pass_invocation
from arcbox_client.commands._output import show_facts, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


@click.command("ping", short_help="Ask for a sign of life, and time it.")
@click.argument("message", default="")
@click.option(
    "-c", "--count", type=click.IntRange(min=0), default=1, show_default=True, help="How many; 0: until Ctrl-C."
)
@click.option("-i", "--interval", type=Seconds(min=0), default=1.0, show_default=True, help="Seconds between them.")
@click.option("--sync-clock", is_flag=True, help="Set the guest's clock to this machine's where it is off.")
@common_options
@pass_invocation
def command(invocation: Invocation, message: str, count: int, interval: float, *, sync_clock: bool) -> None:
    """Ask the agent for a sign of life, and measure how long it takes.

    The agent answers `pong`, or `pong: MESSAGE`.
    """
    pings = _Pings(message, count, interval, sync_clock, quiet=invocation.json)
    try:
        invocation.run(pings.send)
    finally:
        pings.summarize()


@define
class _Pings:
    _message: str
    _count: int
    _interval: float
    _sync_clock: bool
    _quiet: bool
    _milliseconds: list[float] = field(init=False, factory=list)
    _answer: str = field(init=False, default="")
    _version: str = field(init=False, default="")

    async def send(self, client: AgentClient) -> None:
        while not self._count or len(self._milliseconds) < self._count:
            if self._milliseconds:
                await trio.sleep(self._interval)
            clock = int(time.time()) if self._sync_clock else 0
            start = time.perf_counter()
            reply = await client.ping(self._message, timestamp_secs=clock)
            self._milliseconds.append((time.perf_counter() - start) * 1000)
            self._answer, self._version = reply.message, reply.version
            if not self._quiet:
                click.echo(f"{reply.message}  {_show(self._milliseconds[-1])}  agent {reply.version}")

    def summarize(self) -> None:
        if not self._milliseconds:
            return
        figures = latency_summary(self._milliseconds)
        if self._quiet:
            latency = {name: round(value, 4) for name, value in figures.items()}
            show_json(
                {
                    "message": self._answer,
                    "version": self._version,
                    "count": len(self._milliseconds),
                    "latency_ms": latency,
                }
            )
        elif len(self._milliseconds) > 1:
            show_facts(
                {"pings": str(len(self._milliseconds)), **{name: _show(value) for name, value in figures.items()}}
            )


def latency_summary(samples: list[float]) -> dict[str, float]:
    """What is said of at least one sample, in its own unit. p99 is the nearest rank."""
    ordered = sorted(samples)
    size = len(ordered)
    return {
        "min": ordered[0],
        "avg": sum(ordered) / size,
        "median": (ordered[(size - 1) // 2] + ordered[size // 2]) / 2,
        "p99": ordered[-(-size * 99 // 100) - 1],
        "max": ordered[-1],
    }


def _show(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"
