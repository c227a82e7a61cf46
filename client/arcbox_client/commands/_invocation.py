"""The options that every command takes, and the connection that they describe."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click
import trio
from attrs import define

from arcbox_client._background import beside
from arcbox_client._interrupts import cancel_at_ctrl_c
from arcbox_client.addresses import FORMS
from arcbox_client.client import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_client.client import AgentClient

_CommandT = TypeVar("_CommandT", bound="Callable[..., object]")

_VARIABLE = "ARCBOX_CONNECT"

COMPLETION_VARIABLE = "_ARCBOXCTL_COMPLETE"
"""Set by the scripts of `arcboxctl completion` when a shell asks what may come next."""

_TIMEOUT = 10.0
"""Seconds for connecting and for a request that is not slow, where --timeout does not say."""


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
