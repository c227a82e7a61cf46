"""arcboxctl ping, info, cat, trim and shutdown: the machine itself."""

from __future__ import annotations

import base64
import posixpath
import re
import sys
import time
from typing import TYPE_CHECKING

import click
import trio
from attrs import define, field

from arcbox_client.commands._invocation import Seconds, common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_duration, human_size, show_facts, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import arcbox_v1

_CHUNK = 4 * 1024 * 1024
"""Bytes of a file per request: large enough for full speed, small enough to show progress on a slow line."""


@click.command("ping", short_help="Ask for a sign of life, and time it.")
@click.argument("message", default="")
@click.option(
    "-c", "--count", type=click.IntRange(min=0), default=1, show_default=True, help="How many; 0: until Ctrl-C."
)
@click.option("-i", "--interval", type=Seconds(min=0), default=1.0, show_default=True, help="Seconds between them.")
@click.option("--sync-clock", is_flag=True, help="Set the guest's clock to this machine's where it is off.")
@common_options
@pass_invocation
def ping(invocation: Invocation, message: str, count: int, interval: float, *, sync_clock: bool) -> None:
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
                click.echo(f"{reply.message}  {_milliseconds_text(self._milliseconds[-1])}  agent {reply.version}")

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
                {
                    "pings": str(len(self._milliseconds)),
                    **{name: _milliseconds_text(value) for name, value in figures.items()},
                }
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


def _milliseconds_text(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"


@click.command("info", short_help="Show what the guest is.")
@common_options
@pass_invocation
def info(invocation: Invocation) -> None:
    """Show what the guest is: kernel, system, memory, load, addresses."""

    async def ask(client: AgentClient) -> None:
        reply = await client.system_info()
        if invocation.json:
            show_json(as_plain(reply))
        else:
            show_facts(_facts(reply))

    invocation.run(ask)


def _facts(info: arcbox_v1.SystemInfo) -> dict[str, str]:
    facts = {
        "hostname": info.hostname,
        "system": f"{info.os_name} {info.os_version}".strip(),
        "kernel": info.kernel_version,
        "architecture": info.arch,
        "processors": str(info.cpu_count or ""),
        "memory": f"{human_size(info.available_memory)} of {human_size(info.total_memory)} available",
        "load": " ".join(f"{load:.2f}" for load in info.load_average),
        "up for": human_duration(info.uptime),
        "addresses": ", ".join(info.ip_addresses),
    }
    return {name: value or "unknown" for name, value in facts.items()}


@click.command("cat", short_help="Write a file of the guest to stdout.")
@click.argument("path")
@click.option("--offset", type=click.IntRange(0, 2**64 - 1), default=0, help="Bytes to leave out at the start.")
@click.option("--length", type=click.IntRange(0), default=None, help="Bytes to write at most.  [default: all]")
@common_options
@pass_invocation
def cat(invocation: Invocation, path: str, offset: int, length: int | None) -> None:
    """Write a file of the guest to stdout, whatever its size, byte for byte.

    The agent reads as much as the file's size says. Files in /proc and /sys claim to be empty: that is an error here.

    With --json: one line for each part of it, {"path", "offset", "data" in base64}.
    """

    async def copy(client: AgentClient) -> None:
        position, end = offset, None if length is None else offset + length
        while True:
            wanted = _CHUNK if end is None else min(_CHUNK, end - position)
            data = await client.mmap_read_file(path, offset=position, length=wanted)
            if data:
                _write(data, path, position)
            elif position == 0 and wanted:
                _check_emptiness(path)
            position += len(data)
            if len(data) < wanted or position == end:
                return

    def _write(data: bytes, path: str, position: int) -> None:
        if invocation.json:
            show_json({"path": path, "offset": position, "data": base64.b64encode(data).decode()})
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    invocation.run(copy)


def _check_emptiness(path: str) -> None:
    """Raise `click.ClickException` for a file whose size says nothing: proc(5) and sysfs make content up on reading."""
    if posixpath.normpath(path).startswith(("/proc/", "/sys/")):
        raise click.ClickException(f"{path} claims to be empty, and the agent reads no more of a file than its size")


@click.command("trim", short_help="Give unused disk blocks back.")
@common_options
@pass_invocation
def trim(invocation: Invocation) -> None:
    """Give unused blocks of the guest's data volumes back to this machine.

    With --json: {"result", "volumes": [{"mount", "trimmed_bytes" or "error"}, ...]}.
    """

    async def ask(client: AgentClient) -> None:
        reply = await client.disk_trim()
        if invocation.json:
            show_json({"result": reply.result, "volumes": _trimmed_volumes(reply.result)})
        else:
            click.echo(reply.result.replace("; ", "\n"))

    invocation.run(ask)


def _trimmed_volumes(result: str) -> list[dict[str, object]]:
    """The parts of a DiskTrimResponse: `<mount>: <n> bytes trimmed`, or the reason why not, joined by `; `."""
    volumes: list[dict[str, object]] = []
    for part in result.split("; "):
        mount, colon, said = part.partition(": ")
        trimmed = re.fullmatch(r"(\d+) bytes trimmed", said)
        if trimmed:
            volumes.append({"mount": mount, "trimmed_bytes": int(trimmed[1])})
        elif colon:
            volumes.append({"mount": mount, "error": said})
    return volumes


@click.command("shutdown", short_help="Power the guest off.")
@click.option(
    "--timeout-seconds",
    "--grace",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="What runs in the guest has so long to end by itself.  [default: 25]",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
@pass_invocation
def shutdown(invocation: Invocation, timeout_seconds: int, *, yes: bool) -> None:
    """Power the guest off. Asks first; where nobody can be asked, --yes must be given."""
    if not yes:
        invocation.confirm(f"Power off the guest at {invocation.where}?", "this powers the guest off")

    async def shut_down(client: AgentClient) -> None:
        reply = await client.shutdown(timeout_seconds=timeout_seconds)
        if invocation.json:
            show_json(as_plain(reply))
        elif reply.accepted:
            click.echo("the guest is shutting down")
        if not reply.accepted:
            raise click.ClickException("the agent did not accept the shutdown")

    invocation.run(shut_down)
