"""arcboxctl sandbox logs."""

from __future__ import annotations

import base64
import os
import sys
from typing import TYPE_CHECKING

import click

from arcbox_client.client import DEFAULT_DATA_DIR
from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import show_json
from arcbox_client.errors import FileReadError

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation

_VARIABLE = "ARCBOX_SANDBOX_DATA_DIR"


@click.command("logs", short_help="Show what a sandbox's initial command wrote.")
@click.argument("sandbox_id", metavar="ID")
@click.option(
    "--tail", type=click.IntRange(0), metavar="LINES", help="Only the last ones.  [default: all that is kept]"
)
@click.option(
    "--data-dir",
    metavar="DIR",
    help=f"The guest's setting sandbox.data_dir.  [env: {_VARIABLE}; default: {DEFAULT_DATA_DIR}]",
)
@common_options
@pass_invocation
def command(invocation: Invocation, sandbox_id: str, tail: int | None, data_dir: str | None) -> None:
    """Show what the command that a sandbox was created with wrote to its stdout and stderr.

    The agent keeps the newest of it, 256 KiB at least, until the sandbox is removed.

    With --json: {"id", "log" in base64}.
    """
    directory = data_dir or os.environ.get(_VARIABLE) or DEFAULT_DATA_DIR

    async def show(client: AgentClient) -> None:
        try:
            log = await client.sandbox_log(sandbox_id, data_dir=directory)
        except FileReadError as error:
            raise click.ClickException(
                f"{error}: if the guest keeps its sandboxes elsewhere, say so: --data-dir"
            ) from error
        if tail is not None:
            log = b"".join(log.splitlines(keepends=True)[-tail:] if tail else [])
        if invocation.json:
            show_json({"id": sandbox_id, "log": base64.b64encode(log).decode()})
        else:
            sys.stdout.buffer.write(log)
            sys.stdout.buffer.flush()

    invocation.run(show)
