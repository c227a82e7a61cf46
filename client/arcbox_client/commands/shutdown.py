"""arcboxctl shutdown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from arcbox_client._interrupts import ctrl_c_raises
from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


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
def command(invocation: Invocation, timeout_seconds: int, *, yes: bool) -> None:
    """Power the guest off. Asks first; where nobody can be asked, --yes must be given."""
    if not yes:
        _ask(invocation.where)

    async def shut_down(client: AgentClient) -> None:
        reply = await client.shutdown(timeout_seconds=timeout_seconds)
        if invocation.json:
            show_json(as_plain(reply))
        elif reply.accepted:
            click.echo("the guest is shutting down")
        if not reply.accepted:
            raise click.ClickException("the agent did not accept the shutdown")

    invocation.run(shut_down)


def _ask(where: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("this powers the guest off: say --yes, as nobody can be asked here")
    with ctrl_c_raises():
        agreed = click.confirm(f"Power off the guest at {where}?", err=True)
    if not agreed:
        raise click.ClickException("nothing was shut down")
