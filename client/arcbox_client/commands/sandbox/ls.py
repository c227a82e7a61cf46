"""arcboxctl sandbox ls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_duration, show_json
from arcbox_client.commands.sandbox._arguments import KeyValue
from arcbox_client.commands.sandbox._tables import show_table

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import sandbox_v1

_STATES = ["starting", "ready", "running", "stopping", "stopped", "failed"]


@click.command("ls", short_help="List the sandboxes.")
@click.option("--state", type=click.Choice(_STATES), default=None, help="Only those in this state.")
@click.option("-l", "--label", type=KeyValue(), multiple=True, help="Only those with this label; all of them if often.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@common_options
@pass_invocation
def command(invocation: Invocation, state: str | None, label: tuple[tuple[str, str], ...], *, quiet: bool) -> None:
    """List the sandboxes."""

    async def list_(client: AgentClient) -> None:
        reply = await client.sandbox_list(state=state or "", labels=dict(label))
        if invocation.json:
            show_json(as_plain(reply))
        elif quiet:
            for sandbox in reply.sandboxes:
                click.echo(sandbox.id)
        else:
            now = time.time()
            show_table(["ID", "STATE", "AGE", "ADDRESS", "LABELS"], [_row(one, now) for one in reply.sandboxes])

    invocation.run(list_)


def _row(sandbox: sandbox_v1.SandboxSummary, now: float) -> list[str]:
    age = max(0, int(now) - sandbox.created_at)  # the guest's clock may be ahead
    labels = ", ".join(f"{name}={value}" for name, value in sorted(sandbox.labels.items()))
    return [sandbox.id, sandbox.state, human_duration(age), sandbox.ip_address or "-", labels or "-"]
