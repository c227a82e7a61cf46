"""arcboxctl sandbox events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import sandbox_v1

_ACTIONS = ["created", "ready", "running", "idle", "stopping", "stopped", "failed", "removed"]


@click.command("events", short_help="Show what happens to sandboxes, as it happens.")
@click.argument("sandbox_id", metavar="[ID]", default="")
@click.option("--action", type=click.Choice(_ACTIONS), default=None, help="Only this.")
@click.option("-n", "--count", type=click.IntRange(min=1), default=None, help="End after so many.")
@common_options
@pass_invocation
def command(invocation: Invocation, sandbox_id: str, action: str | None, count: int | None) -> None:
    """Show what happens to sandboxes, or to one, from now on, until Ctrl-C. With --json: a line for each event."""

    async def show(client: AgentClient) -> None:
        seen = 0
        async with client.sandbox_events(sandbox_id, action=action or "") as events:
            async for event in events:
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
