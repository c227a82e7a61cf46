"""The same for several sandboxes: what fails for one does not keep the others from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._errors import complain
from arcbox_client.commands._output import show_json
from arcbox_client.errors import RequestFailedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


def for_each(
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
