"""arcboxctl sandbox. A command is a function in a module here, loaded on use, and a line in `COMMANDS`."""

from __future__ import annotations

from typing import Final

import click

from arcbox_client.commands._invocation import CommandGroup, common_options

COMMANDS: Final = {
    "create": "create:create",
    "ls": "observe:ls",
    "inspect": "observe:inspect",
    "run": "processes:run",
    "exec": "processes:exec_",
    "attach": "executions:attach",
    "ps": "executions:ps",
    "kill": "executions:kill",
    "cp": "copying:cp",
    "logs": "observe:logs",
    "events": "observe:events",
    "port": "lifecycle:port",
    "pause": "lifecycle:pause",
    "unpause": "lifecycle:unpause",
    "update": "lifecycle:update",
    "checkpoint": "snapshots:checkpoint",
    "restore": "snapshots:restore",
    "snapshots": "snapshots:snapshots",
    "snapshot": "snapshots:snapshot",
    "stop": "lifecycle:stop",
    "rm": "lifecycle:rm",
}
"""The module of each command and its name there, in the order that help shows them."""


class _Commands(CommandGroup):
    package = __name__
    homes = COMMANDS


_EPILOG = """\
\b
Such as:
  ID=$(arcboxctl sandbox create --memory 1g --ttl 1h)
  arcboxctl sandbox run $ID uname -a
  arcboxctl sandbox exec -it $ID sh
  arcboxctl sandbox rm -f $ID
"""


@click.command(
    "sandbox",
    cls=_Commands,
    short_help="Create sandboxes, and run things in them.",
    epilog=_EPILOG,
)
@common_options
def sandbox() -> None:
    """Create sandboxes, run things in them, stop and remove them."""
