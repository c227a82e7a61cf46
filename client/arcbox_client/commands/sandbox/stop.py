"""arcboxctl sandbox stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands.sandbox._arguments import Duration
from arcbox_client.commands.sandbox._several import for_each

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation

_MARGIN = 60
"""Seconds for the agent's reply once the processes had theirs."""


@click.command("stop", short_help="Stop sandboxes; their files stay.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-t", "--grace", type=Duration(), default=0, help="What runs there has so long to end.  [default: 30s]")
@common_options
@pass_invocation
def command(invocation: Invocation, ids: tuple[str, ...], grace: int) -> None:
    """Stop sandboxes: what runs there is asked to end, and killed if it does not."""

    async def stop(client: AgentClient, sandbox_id: str) -> None:
        patient = client if invocation.timeout is not None else client.within(grace + _MARGIN)
        await patient.sandbox_stop(sandbox_id, timeout_seconds=grace)

    for_each(invocation, ids, stop, "stopped")
