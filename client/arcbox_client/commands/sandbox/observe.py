"""arcboxctl sandbox ls, inspect, logs and events: what is known of sandboxes."""

from __future__ import annotations

import base64
import os
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from arcbox_client.client import DEFAULT_DATA_DIR
from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_duration, human_size, show_facts, show_json, show_table
from arcbox_client.commands.sandbox._arguments import KeyValue
from arcbox_client.commands.sandbox._stdio import show_execution
from arcbox_client.errors import FileReadError
from arcbox_protocol import arcbox_sandbox_v1

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import sandbox_v1

_STATES = ["starting", "ready", "running", "stopping", "stopped", "failed"]

_ACTIONS = ["created", "ready", "running", "idle", "stopping", "stopped", "failed", "removed"]

_VARIABLE = "ARCBOX_SANDBOX_DATA_DIR"


@click.command("ls", short_help="List the sandboxes.")
@click.option("--state", type=click.Choice(_STATES), default=None, help="Only those in this state.")
@click.option("-l", "--label", type=KeyValue(), multiple=True, help="Only those with this label; all of them if often.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@common_options
@pass_invocation
def ls(invocation: Invocation, state: str | None, label: tuple[tuple[str, str], ...], *, quiet: bool) -> None:
    """List the sandboxes."""

    async def ask(client: AgentClient) -> None:
        reply = await client.sandbox_list(state=state or "", labels=dict(label))
        if invocation.json:
            show_json(as_plain(reply))
        elif quiet:
            for sandbox in reply.sandboxes:
                click.echo(sandbox.id)
        else:
            now = time.time()
            show_table(["ID", "STATE", "AGE", "ADDRESS", "LABELS"], [_row(one, now) for one in reply.sandboxes])

    invocation.run(ask)


def _row(sandbox: sandbox_v1.SandboxSummary, now: float) -> list[str]:
    age = max(0, int(now) - sandbox.created_at)  # the guest's clock may be ahead
    labels = ", ".join(f"{name}={value}" for name, value in sorted(sandbox.labels.items()))
    return [sandbox.id, sandbox.state, human_duration(age), sandbox.ip_address or "-", labels or "-"]


@click.command("inspect", short_help="Show all that is known of a sandbox.")
@click.argument("sandbox_id", metavar="ID")
@common_options
@pass_invocation
def inspect(invocation: Invocation, sandbox_id: str) -> None:
    """Show all that is known of a sandbox."""

    async def ask(client: AgentClient) -> None:
        info = await client.sandbox_inspect(sandbox_id)
        if invocation.json:
            show_json(as_plain(info))
        else:
            show_facts(_facts(info))

    invocation.run(ask)


def _facts(info: sandbox_v1.SandboxInfo) -> dict[str, str]:
    facts = {
        "id": info.id,
        "state": info.state,
        "error": info.error,
        "created": _time(info.created_at),
        "ready": _time(info.ready_at),
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(info.labels.items())),
        "processors": str(info.limits.vcpus or ""),
        "memory": human_size(info.limits.memory_mib << 20) if info.limits.memory_mib else "",
        "address": info.network.ip_address,
        "gateway": info.network.gateway,
        "last exit": _time(info.last_exited_at),
        "last exit code": str(info.last_exit_code) if info.last_exited_at else "",
    }
    return {name: value for name, value in facts.items() if value}


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ") if seconds else ""


@click.command("logs", short_help="Show what a sandbox's initial command wrote.")
@click.argument("sandbox_id", metavar="ID")
@click.argument("execution_id", metavar="[EXECUTION]", default="")
@click.option("-f", "--follow", is_flag=True, help="With EXECUTION: go on until it ends.")
@click.option(
    "--tail", type=click.IntRange(0), metavar="LINES", help="Only the last ones.  [default: all that is kept]"
)
@click.option(
    "--data-dir",
    metavar="DIR",
    help=f"The guest's setting sandbox.data_dir.  [env: {_VARIABLE}; default: {DEFAULT_DATA_DIR}]",
)
@common_options
@pass_invocation
def logs(
    invocation: Invocation,
    sandbox_id: str,
    execution_id: str,
    *,
    follow: bool,
    tail: int | None,
    data_dir: str | None,
) -> None:
    """Show what the command that a sandbox was created with wrote to its stdout and stderr, or what an execution did.

    The agent keeps the newest of it, 256 KiB at least, until the sandbox is removed.

    With --json: {"id", "log" in base64}; with EXECUTION as `run` does.
    """
    if execution_id:
        if tail is not None or data_dir is not None:
            raise click.UsageError("--tail and --data-dir do not go with EXECUTION")
        invocation.run(partial(_execution_log, sandbox_id, execution_id, follow=follow, as_json=invocation.json))
        return
    if follow:
        raise click.UsageError("--follow goes with EXECUTION")
    directory = data_dir or os.environ.get(_VARIABLE) or DEFAULT_DATA_DIR

    async def show(client: AgentClient) -> None:
        try:
            log = await client.sandbox_log(sandbox_id, data_dir=directory)
        except FileReadError as error:
            raise click.ClickException(
                f"{error}: if the guest keeps its sandboxes elsewhere, say so: --data-dir"
            ) from error
        if tail is not None:
            log = b"".join(log.splitlines(keepends=True)[-tail:] if tail else [])
        if invocation.json:
            show_json({"id": sandbox_id, "log": base64.b64encode(log).decode()})
        else:
            sys.stdout.buffer.write(log)
            sys.stdout.buffer.flush()

    invocation.run(show)


async def _execution_log(
    sandbox_id: str, execution_id: str, client: AgentClient, *, follow: bool, as_json: bool
) -> None:
    """Show what an execution wrote: until now, or until it ends."""
    execution = client.sandbox_handle(sandbox_id).execution(execution_id)
    info = await execution.info()
    ended = info.state == arcbox_sandbox_v1.EXECUTION_STATE_EXITED
    stop = None if follow or ended else (info.stdout_len, info.stderr_len)
    await show_execution(execution, stop=stop, as_json=as_json)


@click.command("events", short_help="Show what happens to sandboxes, as it happens.")
@click.argument("sandbox_id", metavar="[ID]", default="")
@click.option("--action", type=click.Choice(_ACTIONS), default=None, help="Only this.")
@click.option("-n", "--count", type=click.IntRange(min=1), default=None, help="End after so many.")
@common_options
@pass_invocation
def events(invocation: Invocation, sandbox_id: str, action: str | None, count: int | None) -> None:
    """Show what happens to sandboxes, or to one, from now on, until Ctrl-C. With --json: a line for each event."""

    async def show(client: AgentClient) -> None:
        seen = 0
        async with client.sandbox_events(sandbox_id, action=action or "") as stream:
            async for event in stream:
                _show(event)
                seen += 1
                if seen == count:
                    return

    def _show(event: sandbox_v1.SandboxEvent) -> None:
        if invocation.json:
            show_json(as_plain(event))
        else:
            click.echo(_line(event))

    invocation.run(show)


def _line(event: sandbox_v1.SandboxEvent) -> str:
    when = datetime.fromtimestamp(event.timestamp / 1e9, UTC).astimezone().isoformat(" ", "milliseconds")
    attributes = [f"{name}={value}" for name, value in sorted(event.attributes.items())]
    return "  ".join([when, event.sandbox_id, event.action, *attributes])
