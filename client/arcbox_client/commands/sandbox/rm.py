"""arcboxctl sandbox rm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands.sandbox._several import for_each

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


@click.command("rm", short_help="Remove sandboxes.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also while something runs there: it is killed.")
@common_options
@pass_invocation
def command(invocation: Invocation, ids: tuple[str, ...], *, force: bool) -> None:
    """Remove sandboxes, with all that belongs to them."""

    async def remove(client: AgentClient, sandbox_id: str) -> None:
        await client.sandbox_remove(sandbox_id, force=force)

    for_each(invocation, ids, remove, "removed")
