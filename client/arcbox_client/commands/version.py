"""arcboxctl version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import show_json
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


@click.command("version", short_help="Show the versions of both ends.")
@common_options
@pass_invocation
def command(invocation: Invocation) -> None:
    """Show the version of arcboxctl and, where an address is given, of the agent."""
    versions: dict[str, str | None] = {"arcboxctl": __version__, "agent": None}

    async def ask(client: AgentClient) -> None:
        versions["agent"] = (await client.ping()).version

    try:
        if invocation.where:
            invocation.run(ask)
    finally:
        if invocation.json:
            show_json(versions)
        else:
            for name, version in versions.items():
                if version is not None:
                    click.echo(f"{name} {version}")
