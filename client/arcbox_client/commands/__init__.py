"""What `arcboxctl` can do. A command is a function in a module here, loaded on use, and a line in `COMMANDS`."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import shell_complete

from arcbox_client._interrupts import INTERRUPTED
from arcbox_client.commands._invocation import (
    COMPLETION_VARIABLE,
    EXIT_CODES,
    CommandGroup,
    Invocation,
    common_options,
    complain,
)
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = {
    "ping": "machine:ping",
    "info": "machine:info",
    "cat": "machine:cat",
    "trim": "machine:trim",
    "shutdown": "machine:shutdown",
    "top": "top:top",
    "exec": "machine_exec:exec_",
    "sandbox": "sandbox:sandbox",
    "runtime": "runtime:runtime",
    "docker-env": "runtime:docker_env",
    "k8s": "runtime:k8s",
    "version": "about:version",
    "completion": "about:completion",
}
"""The module of each command and its name there, in the order that help shows them."""

ALIASES: Final = {"sb": "sandbox"}


class _Commands(CommandGroup):
    package = __name__
    homes = COMMANDS
    aliases = ALIASES


_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())


@click.command(
    "arcboxctl",
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@common_options
def arcboxctl() -> None:
    """Talk to the ArcBox agent of a guest.

    Say which with --connect, or once and for all in the environment: ARCBOX_CONNECT=unix:/run/guest.sock
    """


def run(arguments: Sequence[str]) -> int:
    """Run `arcboxctl` with these arguments; returns the exit code. Never raises what went wrong: it is on stderr."""
    if COMPLETION_VARIABLE in os.environ:  # a shell wants to know what may come next
        return shell_complete(arcboxctl, {}, "arcboxctl", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
    invocation = Invocation()
    try:
        return _invoke(arguments, invocation)
    except BrokenPipeError:
        _end_as_a_filter_does()
    except (KeyboardInterrupt, click.Abort):
        pass
    except Exception as error:  # noqa: BLE001  what it can't explain, it raises again
        # An option that could not be parsed may stand before --json; behind a command of a guest it is not ours.
        misused = isinstance(error, click.UsageError) and "--json" in arguments
        return complain(error, as_json=invocation.json or misused, code=invocation.own_failure)
    return INTERRUPTED


def _invoke(arguments: Sequence[str], invocation: Invocation) -> int:
    """Not by arcboxctl.main(): that has a way of its own with a closed stdout."""
    try:
        with arcboxctl.make_context("arcboxctl", list(arguments), obj=invocation) as context:
            arcboxctl.invoke(context)
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    sys.stdout.flush()
    return 0


def _end_as_a_filter_does() -> None:
    """Whoever read stdout wants no more: end of SIGPIPE, as cat(1) does, so that the shell sees the same."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
