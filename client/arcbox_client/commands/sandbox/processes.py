"""arcboxctl sandbox run and exec: processes in a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click
from attrs import define, field

from arcbox_client.commands._invocation import ProcessCommand, common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_json
from arcbox_client.commands.sandbox._arguments import CommandOptions, command_line, command_options
from arcbox_client.commands.sandbox._stdio import show, tell_why_killed
from arcbox_client.commands.sandbox._talk import Talk, check_terminal
from arcbox_client.commands.sandbox._terminal import KeySequence, terminal_size

if TYPE_CHECKING:
    from arcbox_client._sandbox_requests import ExecOptions
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


class _RunOptions(CommandOptions):
    detach: bool
    interactive: bool
    tty: bool
    name: str


class _Options(CommandOptions):
    interactive: bool
    tty: bool
    detach_keys: bytes


@click.command(
    "run",
    cls=ProcessCommand,
    short_help="Run a command in a sandbox that runs nothing else.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("sandbox_id", metavar="ID")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED, callback=command_line)
@click.option("-d", "--detach", is_flag=True, help="Start it, write the id of its execution, and leave it alone.")
@click.option("-i", "--interactive", is_flag=True, help="With -d: give it a stdin, for `attach`.")
@click.option("-t", "--tty", is_flag=True, help="With -d: give it a terminal.")
@click.option("--name", default="", metavar="EXECUTION", help="With -d: its id.  [default: one that is made up]")
@command_options
@common_options
@pass_invocation
def run(invocation: Invocation, /, sandbox_id: str, cmd: tuple[str, ...], **options: Unpack[_RunOptions]) -> None:
    """Run CMD in a sandbox in which nothing else runs, and exit as it does. Its stdin is empty.

    Ctrl-C kills it. With -d it runs beside whatever else runs there, outlives this command and the agent, and is what
    `attach`, `logs`, `ps` and `kill` are for.

    With --json: a line for each piece of output, {"stream", "data" in base64}, and at the end {"stream": "exit",
    "exit_code"}.
    """
    if options["detach"]:
        _start(invocation, sandbox_id, cmd, options)
        return
    if options["interactive"] or options["tty"] or options["name"]:
        raise click.UsageError("--interactive, --tty and --name go with --detach; or use exec")
    exit_code = 0

    async def show_output(client: AgentClient) -> None:
        nonlocal exit_code
        async with client.sandbox_run(
            sandbox_id,
            cmd,
            env=dict(options["env"]),
            working_dir=options["workdir"],
            user=options["user"],
            timeout=options["kill_after"],
        ) as session:
            exit_code = await show(session, as_json=invocation.json)
        await tell_why_killed(client, sandbox_id, exit_code)

    invocation.run(show_output)
    raise click.exceptions.Exit(exit_code)


def _start(invocation: Invocation, sandbox_id: str, cmd: tuple[str, ...], options: _RunOptions) -> None:
    async def start(client: AgentClient) -> None:
        execution = await client.execution_start(
            sandbox_id,
            cmd,
            execution_id=options["name"],
            stdin=options["interactive"],
            tty=options["tty"],
            env=dict(options["env"]),
            working_dir=options["workdir"],
            user=options["user"],
            timeout=options["kill_after"],
        )
        if invocation.json:
            show_json(as_plain(execution))
        else:
            click.echo(execution.id)

    invocation.run(start)


@click.command(
    "exec",
    cls=ProcessCommand,
    short_help="Run a command in a sandbox, with a stdin and maybe a terminal.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("sandbox_id", metavar="ID")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED, callback=command_line)
@click.option("-i", "--interactive", is_flag=True, help="Send it what comes from stdin.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@command_options
@click.option(
    "--detach-keys",
    type=KeySequence(),
    default="ctrl-p,ctrl-q",
    show_default=True,
    help="With -it, leave it running and come back to the shell; '' for none.",
)
@common_options
@pass_invocation
def exec_(invocation: Invocation, /, sandbox_id: str, cmd: tuple[str, ...], **options: Unpack[_Options]) -> None:
    """Run CMD in a sandbox, beside what runs there already, and exit as it does.

    With -it it has this terminal: all keys go to it, Ctrl-C too, and it sees the window change its size. Otherwise
    Ctrl-C kills it.

    With --json: as `run` does.
    """
    check_terminal(tty=options["tty"], interactive=options["interactive"], as_json=invocation.json)
    execution = _Execution(sandbox_id, cmd, options, as_json=invocation.json)
    invocation.run(execution.run)
    raise click.exceptions.Exit(execution.exit_code)


@define(eq=False)
class _Execution:
    """One call of this command."""

    _sandbox_id: str
    _cmd: tuple[str, ...]
    _options: _Options
    _as_json: bool
    exit_code: int = field(init=False, default=0)

    async def run(self, client: AgentClient) -> None:
        options = self._options
        talk = Talk(options["tty"], options["interactive"], options["detach_keys"], self._as_json)
        async with client.sandbox_exec(self._sandbox_id, self._cmd, **self._wire_options()) as session:
            self.exit_code = await talk.hold(session)
        await tell_why_killed(client, self._sandbox_id, self.exit_code)

    def _wire_options(self) -> ExecOptions:
        options = self._options
        wire: ExecOptions = {
            "env": dict(options["env"]),
            "working_dir": options["workdir"],
            "user": options["user"],
            "timeout": options["kill_after"],
            "tty": options["tty"],
        }
        size = terminal_size()
        if options["tty"] and size is not None:
            wire["tty_size"] = size
        return wire
