"""arcboxctl sandbox run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands.sandbox._arguments import CommandOptions, command_line, command_options
from arcbox_client.commands.sandbox._streams import show

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


@click.command(
    "run",
    short_help="Run a command in a sandbox that runs nothing else.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("sandbox_id", metavar="ID")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED, callback=command_line)
@command_options
@common_options
@pass_invocation
def command(
    invocation: Invocation, /, sandbox_id: str, cmd: tuple[str, ...], **options: Unpack[CommandOptions]
) -> None:
    """Run CMD in a sandbox in which nothing else runs, and exit as it does. Its stdin is empty.

    Ctrl-C kills it. With --json: a line for each piece of output, {"stream", "data" in base64}, and at the end
    {"stream": "exit", "exit_code"}.
    """
    exit_code = 0

    async def run(client: AgentClient) -> None:
        nonlocal exit_code
        async with client.sandbox_run(
            sandbox_id,
            cmd,
            env=dict(options["env"]),
            working_dir=options["workdir"],
            user=options["user"],
            timeout_seconds=options["kill_after"],
        ) as session:
            exit_code = await show(session, as_json=invocation.json)

    invocation.run(run)
    raise click.exceptions.Exit(exit_code)
