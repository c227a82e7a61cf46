"""arcboxctl sandbox attach, ps, kill: executions, which outlive the arcboxctl that started them."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click
import trio
from attrs import define, field

from arcbox_client._background import beside
from arcbox_client.commands._invocation import ProcessCommand, common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_size, show_json, show_table
from arcbox_client.commands.sandbox._stdio import descriptor, read, show_execution
from arcbox_client.commands.sandbox._terminal import DetachKeys, KeySequence, RawTerminal, raw_terminal, terminal_size
from arcbox_client.errors import AgentError
from arcbox_client.executions import Exited
from arcbox_protocol import arcbox_sandbox_v1

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_client.executions import ExecutionHandle


@click.command("attach", cls=ProcessCommand, short_help="Connect to what was started with run -d.")
@click.argument("sandbox_id", metavar="ID")
@click.argument("execution_id", metavar="EXECUTION")
@click.option("--no-stdin", is_flag=True, help="Send it nothing.")
@click.option("--tail", is_flag=True, help="Only what it writes from now on.")
@click.option(
    "--detach-keys",
    type=KeySequence(),
    default="ctrl-p,ctrl-q",
    show_default=True,
    help="On a terminal, come back to the shell; '' for none.",
)
@common_options
@pass_invocation
def attach(
    invocation: Invocation, sandbox_id: str, execution_id: str, *, no_stdin: bool, tail: bool, detach_keys: bytes
) -> None:
    """Show what an execution has written and writes, send it this stdin where it has one, and exit as it does.

    It goes on when this ends. With --json: as `run` does.
    """
    attached = _Attached(sandbox_id, execution_id, no_stdin, tail, detach_keys, as_json=invocation.json)
    invocation.run(attached.run)
    raise click.exceptions.Exit(attached.exit_code)


@define(eq=False)
class _Attached:
    """One call of attach."""

    _sandbox_id: str
    _execution_id: str
    _no_stdin: bool
    _tail: bool
    _detach_keys: bytes
    _as_json: bool
    exit_code: int = field(init=False, default=0)

    async def run(self, client: AgentClient) -> None:
        execution = client.sandbox_handle(self._sandbox_id).execution(self._execution_id)
        info = await execution.info()
        running = info.state == arcbox_sandbox_v1.EXECUTION_STATE_RUNNING
        feeding = running and info.HasField("stdin") and not info.stdin.closed and not self._no_stdin
        if feeding and info.tty and sys.stdin is not None and sys.stdin.isatty() and not self._as_json:
            await self._on_this_terminal(execution, info)
        else:
            async with beside(*([partial(self._feed, execution)] if feeding else [])):
                await self._show(execution, info)

    async def _show(self, execution: ExecutionHandle, info: arcbox_sandbox_v1.Execution) -> None:
        stdout, stderr = (info.stdout_len, info.stderr_len) if self._tail else (0, 0)
        exited = await show_execution(execution, start=(stdout, stderr), as_json=self._as_json)
        self.exit_code = exited.exit_code if exited else 0

    async def _feed(self, execution: ExecutionHandle) -> None:
        source = descriptor(sys.stdin)
        with suppress(AgentError):  # whoever reads the output meets it, too
            while source is not None and (data := await read(source)):
                await execution.write_stdin(data)
            if source is not None:
                await execution.close_stdin()

    async def _on_this_terminal(self, execution: ExecutionHandle, info: arcbox_sandbox_v1.Execution) -> None:
        with trio.CancelScope() as attached, raw_terminal(sys.stdin.fileno()) as terminal:
            async with beside(partial(self._type, execution, terminal, attached), partial(_follow_size, execution)):
                await self._show(execution, info)

    async def _type(self, execution: ExecutionHandle, terminal: RawTerminal, attached: trio.CancelScope) -> None:
        leaving = DetachKeys(self._detach_keys)
        with suppress(AgentError):
            while typed := await read(terminal.descriptor):
                keys, leave = leaving.feed(typed)
                if keys:
                    await execution.write_stdin(keys)
                if leave:
                    attached.cancel()
                    return


async def _follow_size(execution: ExecutionHandle) -> None:
    with trio.open_signal_receiver(signal.SIGWINCH) as changes, suppress(AgentError):
        told = None
        while True:
            size = terminal_size()
            if size is not None and size != told:
                await execution.resize(*size)
                told = size
            await anext(changes)


@click.command("ps", short_help="List what was started with run -d.")
@click.argument("sandbox_id", metavar="ID")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@common_options
@pass_invocation
def ps(invocation: Invocation, sandbox_id: str, *, quiet: bool) -> None:
    """List the executions of a sandbox, those that have ended too."""

    async def ask(client: AgentClient) -> None:
        executions = await client.execution_list(sandbox_id)
        if invocation.json:
            show_json({"executions": [as_plain(one) for one in executions]})
        elif quiet:
            for one in executions:
                click.echo(one.id)
        else:
            show_table(["EXECUTION", "STATE", "STARTED", "WRITTEN"], [_row(one) for one in executions])

    invocation.run(ask)


def _row(execution: arcbox_sandbox_v1.Execution) -> list[str]:
    state = "running"
    if execution.state == arcbox_sandbox_v1.EXECUTION_STATE_EXITED:
        state = execution.error or f"exited {Exited.of(execution).exit_code}"
    started = execution.started_at.ToDatetime().isoformat(" ", "seconds") if execution.HasField("started_at") else "-"
    return [execution.id, state, started, human_size(execution.stdout_len + execution.stderr_len)]


class Signal(click.ParamType[int]):
    """A signal's name, with SIG before it or not, or its number."""

    name = "signal"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).upper()
        if text.isdecimal() and 0 < int(text) <= signal.SIGRTMAX:
            return int(text)
        known = signal.Signals.__members__.get(f"SIG{text.removeprefix('SIG')}")
        if known is None:
            self.fail(f"{value!r} is no signal: write TERM, SIGTERM or 15", param, ctx)
        return known.value


@click.command("kill", short_help="Send a signal to what was started with run -d.")
@click.argument("sandbox_id", metavar="ID")
@click.argument("execution_id", metavar="EXECUTION")
@click.option("-s", "--signal", "number", type=Signal(), default="KILL", show_default=True, help="Which.")
@common_options
@pass_invocation
def kill(invocation: Invocation, sandbox_id: str, execution_id: str, number: int) -> None:
    """Send a signal to an execution."""

    async def ask(client: AgentClient) -> None:
        await client.execution_signal(sandbox_id, execution_id, number)
        if invocation.json:
            show_json({"id": execution_id, "signal": number})
        else:
            click.echo(execution_id)

    invocation.run(ask)
