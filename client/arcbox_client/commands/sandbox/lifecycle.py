"""arcboxctl sandbox stop and rm: the same for several sandboxes, where one failure does not hold up the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, complain, pass_invocation
from arcbox_client.commands._output import show_json
from arcbox_client.commands.sandbox._arguments import Duration
from arcbox_client.errors import RequestFailedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation

_MARGIN = 60
"""Seconds for the agent's reply once the processes had theirs."""


@click.command("stop", short_help="Stop sandboxes; their files stay.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-t", "--grace", type=Duration(), default=0, help="What runs there has so long to end.  [default: 30s]")
@common_options
@pass_invocation
def stop(invocation: Invocation, ids: tuple[str, ...], grace: int) -> None:
    """Stop sandboxes: what runs there is asked to end, and killed if it does not."""

    async def stop_one(client: AgentClient, sandbox_id: str) -> None:
        patient = client if invocation.timeout is not None else client.within(grace + _MARGIN)
        await patient.sandbox_stop(sandbox_id, timeout=grace)

    _for_each(invocation, ids, stop_one, "stopped")


@click.command("rm", short_help="Remove sandboxes.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also while something runs there: it is killed.")
@common_options
@pass_invocation
def rm(invocation: Invocation, ids: tuple[str, ...], *, force: bool) -> None:
    """Remove sandboxes, with all that belongs to them."""

    async def remove(client: AgentClient, sandbox_id: str) -> None:
        await client.sandbox_remove(sandbox_id, force=force)

    _for_each(invocation, ids, remove, "removed")


def _for_each(
    invocation: Invocation, ids: Sequence[str], work: Callable[[AgentClient, str], Awaitable[None]], done: str
) -> None:
    """Do `work` with each, and write the id of each that it was done with; `done` says in JSON what that is.

    Raises:
        click.exceptions.Exit: the agent refused it for at least one; each has its line on stderr.
        AgentError: there is no connection, or not any more.
    """
    codes: list[int] = []

    async def all_of_them(client: AgentClient) -> None:
        for sandbox_id in ids:
            try:
                await work(client, sandbox_id)
            except RequestFailedError as error:
                codes.append(complain(error, as_json=invocation.json))
            else:
                _show(sandbox_id)

    def _show(sandbox_id: str) -> None:
        if invocation.json:
            show_json({"id": sandbox_id, done: True})
        else:
            click.echo(sandbox_id)

    invocation.run(all_of_them)
    if codes:
        raise click.exceptions.Exit(codes[0])
