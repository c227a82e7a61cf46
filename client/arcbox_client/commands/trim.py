"""arcboxctl trim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


@click.command("trim", short_help="Give unused disk blocks back.")
@common_options
@pass_invocation
def command(invocation: Invocation) -> None:
    """Give unused blocks of the guest's data volumes back to this machine."""

    async def trim(client: AgentClient) -> None:
        reply = await client.disk_trim()
        if invocation.json:
            show_json(as_plain(reply))
        else:
            click.echo(reply.result.replace("; ", "\n"))

    invocation.run(trim)
