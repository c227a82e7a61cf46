"""arcboxctl sandbox. A command is a module here and a line in `COMMANDS`; it is loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from arcbox_client.commands._invocation import common_options

COMMANDS: Final = {
    "create": "arcbox_client.commands.sandbox.create",
    "ls": "arcbox_client.commands.sandbox.ls",
    "inspect": "arcbox_client.commands.sandbox.inspect",
    "run": "arcbox_client.commands.sandbox.run",
    "exec": "arcbox_client.commands.sandbox.exec",
    "logs": "arcbox_client.commands.sandbox.logs",
    "events": "arcbox_client.commands.sandbox.events",
    "stop": "arcbox_client.commands.sandbox.stop",
    "rm": "arcbox_client.commands.sandbox.rm",
}
"""The module of each command, whose attribute `command` it is, in the order that help shows them."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(COMMANDS[cmd_name]).command
        return found


_EPILOG = """\
\b
Such as:
  ID=$(arcboxctl sandbox create --memory 1g --ttl 1h)
  arcboxctl sandbox run $ID uname -a
  arcboxctl sandbox exec -it $ID sh
  arcboxctl sandbox rm -f $ID
"""


@click.command("sandbox", cls=_Commands, short_help="Create sandboxes, and run things in them.", epilog=_EPILOG)
@common_options
def command() -> None:
    """Create sandboxes, run things in them, stop and remove them."""
