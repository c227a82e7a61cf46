"""What went wrong, in one line, and the exit code that goes with it."""

from __future__ import annotations

import json
from typing import Final

import click

from arcbox_client._interrupts import INTERRUPTED
from arcbox_client.errors import (
    AgentError,
    ConnectError,
    InvalidAddressError,
    RequestFailedError,
    TimedOutError,
)

FAILED: Final = 1
MISUSED: Final = 2
NOT_CONNECTED: Final = 3
CONNECTION_FAILED: Final = 4
TIMED_OUT: Final = 5

EXIT_CODES: Final = {
    0: "done",
    FAILED: "the agent refused or failed, or there is no such file in the guest",
    MISUSED: "arcboxctl was called wrongly",
    NOT_CONNECTED: "no connection to the agent",
    CONNECTION_FAILED: "the connection was lost, or the agent sent what makes no sense",
    TIMED_OUT: "no reply in time",
    INTERRUPTED: "interrupted (Ctrl-C)",
}


def complain(error: Exception, *, as_json: bool) -> int:
    """Tell stderr about an error, and return the exit code. What is nobody's fault but ours is raised again."""
    code = _exit_code(error)
    if code is None:
        raise error
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
