"""arcboxctl top: what the machine and its containers use, live."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from attrs import define, field

from arcbox_client.commands._invocation import Seconds, common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_size, show_facts, show_json, show_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import arcbox_v1

_WINDOW = 300.0
"""Seconds for which one request lasts; then there is another one."""

_HEADS = ["CONTAINER", "CPU", "MEMORY", "DISK READ", "WRITTEN", "NET IN", "OUT", "PIDS"]


@click.command("top", short_help="Show what the guest and its containers use, live.")
@click.option(
    "-d", "--interval", type=Seconds(min=0.2), default=1.0, show_default=True, help="Seconds between samples."
)
@click.option("-n", "--count", type=click.IntRange(min=1), default=None, help="End after so many.  [default: Ctrl-C]")
@common_options
@pass_invocation
def top(invocation: Invocation, interval: float, count: int | None) -> None:
    """Show what the guest and its containers use, on a terminal in place, elsewhere one after the other.

    With --json: a line for each sample, as the agent counts: totals since the start.
    """

    async def watch(client: AgentClient) -> None:
        display = _Json() if invocation.json else _Live() if sys.stdout.isatty() else _Plain()
        seen = 0
        with display:
            while True:
                async with client.watch_stats(interval=interval, duration=_WINDOW) as stats:
                    async for sample in stats:
                        display.show(sample)
                        seen += 1
                        if seen == count:
                            return

    invocation.run(watch)


@define
class _Json:
    """Samples as they are."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, sample: arcbox_v1.MachineStats) -> None:
        show_json(as_plain(sample))
        sys.stdout.flush()


@define
class _Plain(_Json):
    """Rates between samples, as text."""

    _before: arcbox_v1.MachineStats | None = field(init=False, default=None)

    def show(self, sample: arcbox_v1.MachineStats) -> None:
        before, self._before = self._before or sample, sample
        show_facts(machine_facts(before, sample))
        if sample.containers:
            show_table(_HEADS, container_rows(before, sample))
        click.echo()
        sys.stdout.flush()


class _Live(_Json):
    """Rates between samples, redrawn in place."""

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415  only a terminal needs it

        self._before: arcbox_v1.MachineStats | None = None
        self._live = Live(auto_refresh=False, screen=False)

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, sample: arcbox_v1.MachineStats) -> None:
        before, self._before = self._before or sample, sample
        self._live.update(_tables(before, sample), refresh=True)


def _tables(before: arcbox_v1.MachineStats, sample: arcbox_v1.MachineStats) -> RenderableType:
    from rich import box  # noqa: PLC0415  only a terminal needs it
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    machine = Table(box=box.ROUNDED, show_header=False)
    machine.add_column(style="bold cyan", no_wrap=True)
    machine.add_column()
    for name, value in machine_facts(before, sample).items():
        machine.add_row(name, value)
    containers = Table(*_HEADS, box=box.ROUNDED, header_style="bold cyan")
    for row in container_rows(before, sample):
        containers.add_row(*row)
    return Group(machine, containers) if sample.containers else machine


def machine_facts(before: arcbox_v1.MachineStats, sample: arcbox_v1.MachineStats) -> dict[str, str]:
    """What the machine did between two samples, for people."""
    seconds = (sample.monotonic_ms - before.monotonic_ms) / 1000
    ticks = sample.cpu_total_ticks - before.cpu_total_ticks
    busy = (sample.cpu_busy_ticks - before.cpu_busy_ticks) / ticks * 100 if ticks else 0.0
    used = sample.memory_total_bytes - sample.memory_available_bytes

    def rate(name: str) -> str:
        return _rate(getattr(sample, name) - getattr(before, name), seconds)

    facts = {
        "processors": f"{busy:.0f} % of {sample.online_cpus}, load {sample.loadavg1:.2f}",
        "memory": f"{human_size(used)} of {human_size(sample.memory_total_bytes)}",
        "disks": f"{rate('disk_read_bytes')} read, {rate('disk_written_bytes')} written",
        "network": f"{rate('net_rx_bytes')} in, {rate('net_tx_bytes')} out",
    }
    if sample.memory_psi_full_avg10 >= 0:
        facts["memory stalls"] = f"{sample.memory_psi_full_avg10:.1f} % of the last 10 s"
    return facts


def container_rows(before: arcbox_v1.MachineStats, sample: arcbox_v1.MachineStats) -> list[list[str]]:
    """A row for each container, in the order of `_HEADS`; one that is new has no rates yet."""
    seconds = (sample.monotonic_ms - before.monotonic_ms) / 1000
    known = {container.id: container for container in before.containers}
    rows = []
    for now in sample.containers:
        then = known.get(now.id, now)
        cpu = (now.cpu_usage_usec - then.cpu_usage_usec) / (seconds * 1e4) if seconds else 0.0
        limit = f" of {human_size(now.memory_limit_bytes)}" if now.memory_limit_bytes else ""
        rates = [
            _rate(getattr(now, name) - getattr(then, name), seconds)
            for name in ("disk_read_bytes", "disk_written_bytes", "net_rx_bytes", "net_tx_bytes")
        ]
        memory = f"{human_size(now.memory_current_bytes)}{limit}"
        rows.append([now.name or now.id[:12], f"{cpu:.0f} %", memory, *rates, str(now.pids)])
    return rows


def _rate(size: int, seconds: float) -> str:
    return f"{human_size(max(0, round(size / seconds)) if seconds else 0)}/s"
