"""arcboxctl exec: a command in the guest itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from arcbox_client.commands._invocation import ProcessCommand, common_options, pass_invocation
from arcbox_client.commands.sandbox._arguments import ProcessOptions, command_line, process_options
from arcbox_client.commands.sandbox._talk import Talk, check_terminal
from arcbox_client.commands.sandbox._terminal import terminal_size

if TYPE_CHECKING:
    from arcbox_client._machine_requests import MachineExecOptions
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation

_NO_KEYS = b""
"""To leave such a session is to end it: the agent kills it with the connection."""


class _Options(ProcessOptions):
    interactive: bool
    tty: bool
    login: bool


@click.command(
    "exec",
    cls=ProcessCommand,
    short_help="Run a command in the guest itself.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED, callback=command_line)
@click.option("-i", "--interactive", is_flag=True, help="Send it what comes from stdin.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--login", is_flag=True, help="In the environment of a login of that user.")
@process_options
@common_options
@pass_invocation
def exec_(invocation: Invocation, /, cmd: tuple[str, ...], **options: Unpack[_Options]) -> None:
    """Run CMD in the guest, outside of all sandboxes, and exit as it does. As root, unless --user says otherwise.

    The agent does not allow that by default: see its setting machine.allow_exec. It ends when this does.

    With --json: as `sandbox run` does.
    """
    check_terminal(tty=options["tty"], interactive=options["interactive"], as_json=invocation.json)
    talk = Talk(options["tty"], options["interactive"], _NO_KEYS, invocation.json)
    wire: MachineExecOptions = {
        "env": dict(options["env"]),
        "working_dir": options["workdir"],
        "user": options["user"],
        "tty": options["tty"],
    }
    size = terminal_size()
    if options["tty"] and size is not None:
        wire["tty_size"] = size
    exit_codes: list[int] = []

    async def run(client: AgentClient) -> None:
        async with client.machine_exec(cmd, login=options["login"], stdin=options["interactive"], **wire) as session:
            exit_codes.append(await talk.hold(session))

    invocation.run(run)
    raise click.exceptions.Exit(exit_codes.pop())
