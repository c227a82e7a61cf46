"""One call of `arcboxctl`: the options that every command takes, the connection, what went wrong, the exit status."""

from __future__ import annotations

import json
import math
import os
import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import click
import trio
from attrs import define

from arcbox_client._background import beside
from arcbox_client._interrupts import INTERRUPTED, cancel_at_ctrl_c, ctrl_c_raises
from arcbox_client.addresses import FORMS
from arcbox_client.client import connect
from arcbox_client.commands._output import show_json
from arcbox_client.errors import (
    AgentError,
    ConnectError,
    InvalidAddressError,
    RequestFailedError,
    TimedOutError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from arcbox_client.client import AgentClient

_CommandT = TypeVar("_CommandT", bound="Callable[..., object]")

_VARIABLE = "ARCBOX_CONNECT"

COMPLETION_VARIABLE = "_ARCBOXCTL_COMPLETE"
"""Set by the scripts of `arcboxctl completion` when a shell asks what may come next."""

_TIMEOUT = 10.0
"""Seconds for connecting and for a request that is not slow, where --timeout does not say."""

FAILED: Final = 1
MISUSED: Final = 2
NOT_CONNECTED: Final = 3
CONNECTION_FAILED: Final = 4
TIMED_OUT: Final = 5
NOT_THE_COMMANDS: Final = 125

EXIT_CODES: Final = {
    0: "done",
    FAILED: "the agent refused or failed, or there is no such file in the guest",
    MISUSED: "arcboxctl was called wrongly",
    NOT_CONNECTED: "no connection to the agent",
    CONNECTION_FAILED: "the connection was lost, or the agent sent what makes no sense",
    TIMED_OUT: "no reply in time",
    NOT_THE_COMMANDS: "sandbox create, run and exec: any of the above; other codes are the command's own",
    INTERRUPTED: "interrupted (Ctrl-C)",
}


class Seconds(click.FloatRange):
    """A number of seconds; not a number is none, though no comparison would say so."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a valid float range.", param, ctx)
        return seconds


@define
class Invocation:
    """One call of `arcboxctl`."""

    address: str = ""
    json: bool = False
    timeout: float | None = None
    own_failure: int | None = None
    """The exit status of whatever fails here or at the agent; None where each kind of failure has its own."""

    @property
    def where(self) -> str:
        """The agent's address; empty when nobody gave one."""
        return self.address or os.environ.get(_VARIABLE, "")

    def run(self, work: Callable[[AgentClient], Awaitable[None]]) -> None:
        """Connect, and do `work` with the client.

        Raises:
            click.UsageError: nobody said where the agent is.
            KeyboardInterrupt: Ctrl-C; all contexts were left.
            AgentError: whatever went wrong.
        """
        if not self.where:
            raise click.UsageError(f"which agent? Give --connect ADDRESS or set {_VARIABLE}: {FORMS}")
        trio.run(self._run, work)

    def confirm(self, question: str, warning: str) -> None:
        """Ask a person before something that can't be undone.

        Raises:
            click.UsageError: nobody can be asked here; `warning` says what would happen.
            click.ClickException: the answer was no.
        """
        if not (sys.stdin is not None and sys.stdin.isatty()):
            raise click.UsageError(f"{warning}: say --yes, as nobody can be asked here")
        with ctrl_c_raises():
            agreed = click.confirm(question, err=True)
        if not agreed:
            raise click.ClickException("nothing was done")

    async def _run(self, work: Callable[[AgentClient], Awaitable[None]]) -> None:
        timeout = _TIMEOUT if self.timeout is None else self.timeout
        with trio.CancelScope() as scope:
            async with beside(partial(cancel_at_ctrl_c, scope)), connect(self.where, timeout=timeout) as client:
                await work(client if self.timeout is None else client.within(timeout))
        if scope.cancelled_caught:
            raise KeyboardInterrupt


def common_options(command: _CommandT) -> _CommandT:
    """Give a command --connect, --json and --timeout: they may stand before its name as well as after it."""
    options = (
        click.option(
            "--connect",
            "address",
            metavar="ADDRESS",
            help=f"Where the agent is: {FORMS}.  [env: {_VARIABLE}]",
            expose_value=False,
            callback=_store("address"),
        ),
        click.option(
            "--json",
            is_flag=True,
            default=None,
            help="Write JSON, errors too.",
            expose_value=False,
            callback=_store("json"),
        ),
        click.option(
            "--timeout",
            type=Seconds(min=0, min_open=True),
            metavar="SECONDS",
            help=f"For connecting, and for each request.  [default: {_TIMEOUT:g}, more for slow requests]",
            expose_value=False,
            callback=_store("timeout"),
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _store(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def store(ctx: click.Context, _parameter: click.Parameter, value: object) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Invocation), name, value)

    return store


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


class CommandGroup(click.Group):
    """Commands whose modules are loaded when they are asked for.

    `package` is what the modules in `homes` are relative to, `homes` has `module:attribute` by the name of the command.
    """

    package: ClassVar[str]
    homes: ClassVar[Mapping[str, str]]
    aliases: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(self.homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        home = self.homes.get(self.aliases.get(cmd_name, cmd_name))
        if home is None:
            return None
        module, _, attribute = home.partition(":")
        command: click.Command = getattr(import_module(f"{self.package}.{module}"), attribute)
        return command


class ProcessCommand(click.Command):
    """A command that exits as a process in the guest does: failures of its own have one status, as with Docker."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ensure_object(Invocation).own_failure = NOT_THE_COMMANDS
        return super().parse_args(ctx, args)


def complain(error: Exception, *, as_json: bool, code: int | None = None) -> int:
    """Tell stderr about an error, and return the exit code: `code`, or that of its kind.

    Raises:
        Exception: the error itself, where it has no kind: a fault of arcboxctl.
    """
    kind = _exit_code(error)
    if kind is None:
        raise error
    code = code or kind
    line = _line(error)
    if as_json:
        click.echo(json.dumps({"error": {"message": line, "exit_code": code, **_details(error)}}), err=True)
    else:
        click.echo(f"arcboxctl: {line}", err=True)
    return code


_CODES: Final[dict[type[Exception], int]] = {
    click.UsageError: MISUSED,
    click.ClickException: FAILED,
    InvalidAddressError: MISUSED,
    UnicodeEncodeError: MISUSED,  # an argument has other bytes in it
    ConnectError: NOT_CONNECTED,
    TimedOutError: TIMED_OUT,
    RequestFailedError: FAILED,
    AgentError: CONNECTION_FAILED,
    OSError: FAILED,  # such as a full disk under stdout
}


def _exit_code(error: Exception) -> int | None:
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)


def _line(error: Exception) -> str:
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, UnicodeEncodeError):
        text = f"{error.object!r} is not UTF-8, which is all that an agent can be told"
    if isinstance(error, OSError) and not isinstance(error, AgentError):
        text = f"cannot write the output: {(error.strerror or text).lower()}"
    line = " ".join(text.split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        line = f"{line[:1].lower()}{line[1:].rstrip('.')} (see {error.ctx.command_path} --help)"
    return line


def _details(error: Exception) -> dict[str, object]:
    if isinstance(error, RequestFailedError):
        return {"code": error.code, "request": error.request.name, "trace_id": error.trace_id}
    return {}


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
