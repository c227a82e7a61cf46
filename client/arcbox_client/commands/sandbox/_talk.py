"""A process that has this stdin, or this terminal: in a sandbox, or in the guest itself."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click
from attrs import frozen

from arcbox_client._background import beside
from arcbox_client.commands.sandbox._stdio import copy_stdin, no_stdin, read, show
from arcbox_client.commands.sandbox._terminal import DetachKeys, follow_size, go_on_in_background, raw_terminal
from arcbox_client.errors import AgentError

if TYPE_CHECKING:
    from arcbox_client.commands.sandbox._terminal import RawTerminal
    from arcbox_client.streams import ExecSession


def check_terminal(*, tty: bool, interactive: bool, as_json: bool) -> None:
    """Find out whether a process can have a terminal.

    Raises:
        click.UsageError: there is none here, or the output is for programs.
    """
    if tty and as_json:
        raise click.UsageError("--json and --tty do not go together: a terminal is for people")
    if tty and interactive and not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError("stdin is no terminal: leave out --tty")


@frozen
class Talk:
    """How one session is held."""

    _tty: bool
    _interactive: bool
    _detach_keys: bytes
    _as_json: bool

    async def hold(self, session: ExecSession) -> int:
        """Show what the process writes, and send it what comes from here; its exit code."""
        if self._tty and self._interactive:
            with raw_terminal(sys.stdin.fileno()) as terminal:
                async with beside(partial(self._type, session, terminal), partial(follow_size, session)):
                    return await show(session, as_json=False)
        tasks = [partial(copy_stdin if self._interactive else no_stdin, session)]
        if self._tty:
            tasks.append(partial(follow_size, session))
        async with beside(*tasks):
            return await show(session, as_json=self._as_json)

    async def _type(self, session: ExecSession, terminal: RawTerminal) -> None:
        leaving = DetachKeys(self._detach_keys)
        with suppress(AgentError):  # whoever reads the output meets it, too
            while typed := await read(terminal.descriptor):
                keys, leave = leaving.feed(typed)
                if keys:
                    await session.send_stdin(keys)
                if leave:
                    go_on_in_background(terminal.restore)
                    return
            await session.close_stdin()
