"""arcboxctl sandbox create."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Unpack

import click
import trio

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_json
from arcbox_client.commands.sandbox._arguments import (
    BindMount,
    Duration,
    KeyValue,
    Mebibytes,
    ProcessOptions,
    process_options,
)
from arcbox_client.errors import NotFoundError, TimedOutError
from arcbox_protocol import sandbox_v1

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_client.sessions import EventStream

_LOOK_AGAIN = 0.5
"""Seconds until a look at the sandbox itself: nothing says whether its event came before the subscription."""

_USABLE: Final = frozenset({"ready", "running"})


class _Options(ProcessOptions):
    sandbox_id: str
    rootfs: str
    label: tuple[tuple[str, str], ...]
    memory: int
    cpus: int
    mount: tuple[sandbox_v1.Mount, ...]
    ttl: int
    cmd: tuple[str, ...]


@click.command("create", short_help="Create a sandbox.", context_settings={"allow_interspersed_args": False})
@click.option("--id", "sandbox_id", default="", metavar="ID", help="Its id.  [default: one that is made up]")
@click.option("--rootfs", default="", metavar="PATH", help="Directory or file-system image, in the guest.")
@click.option(
    "-l", "--label", type=KeyValue(), multiple=True, help="Label it; may be given often, as --env and --mount."
)
@process_options
@click.option("--mount", type=BindMount(), multiple=True, help="Show a directory or file of the guest in it.")
@click.option("-m", "--memory", type=Mebibytes(), default=0, help="Limit, in MiB or with a unit: 512, 2g.")
@click.option(
    "--cpus", type=click.IntRange(0, 2**32 - 1), metavar="N", default=0, help="Limit: the time of so many processors."
)
@click.option("--ttl", type=Duration(), default=0, help="Remove it so long after its creation: 90s, 15m, 2h.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is ready, or not.  [default: wait]")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
@common_options
@pass_invocation
def command(invocation: Invocation, /, *, wait: bool, **options: Unpack[_Options]) -> None:
    """Create a sandbox, and write its id once it is ready.

    CMD runs in it from then on. With --json: all that is known of the sandbox.
    """

    async def create(client: AgentClient) -> None:
        if not wait:
            reply = await _request(client, options)
            _show(reply, as_json=invocation.json)
            return
        async with client.sandbox_events(options["sandbox_id"]) as events:
            with _spinner(quiet=invocation.json):
                reply = await _request(client, options)
                info = await _ready(client, reply.id, events, invocation.timeout)
        _show(info, as_json=invocation.json)

    invocation.run(create)


async def _request(client: AgentClient, options: _Options) -> sandbox_v1.CreateSandboxResponse:
    return await client.sandbox_create(
        options["sandbox_id"],
        rootfs=options["rootfs"],
        labels=dict(options["label"]),
        env=dict(options["env"]),
        limits=sandbox_v1.ResourceLimits(vcpus=options["cpus"], memory_mib=options["memory"]),
        mounts=options["mount"],
        ttl_seconds=options["ttl"],
        user=options["user"],
        working_dir=options["workdir"],
        cmd=options["cmd"],
    )


async def _ready(
    client: AgentClient, sandbox_id: str, events: EventStream, limit: float | None
) -> sandbox_v1.SandboxInfo:
    """Wait until a sandbox is ready; what is known of it then.

    Raises:
        click.ClickException: it failed, or was stopped or removed.
        TimedOutError: it took more than `limit` seconds.
    """
    with trio.move_on_after(float("inf") if limit is None else limit):
        try:
            info = await client.sandbox_inspect(sandbox_id)
            while info.state == "starting":
                with trio.move_on_after(_LOOK_AGAIN):
                    await _something_happens(events, sandbox_id)
                info = await client.sandbox_inspect(sandbox_id)
        except NotFoundError as error:
            raise click.ClickException(f"sandbox {sandbox_id} was removed before it was ready") from error
        if info.state not in _USABLE:
            how = "has failed" if info.state == "failed" else f"is {info.state}"
            raise click.ClickException(f"sandbox {sandbox_id} {how}: {info.error or 'before it was ready'}")
        return info
    raise TimedOutError(f"sandbox {sandbox_id} is not ready within {limit:g} s")


async def _something_happens(events: EventStream, sandbox_id: str) -> None:
    async for event in events:
        if event.sandbox_id == sandbox_id and event.action != "created":
            return


@contextmanager
def _spinner(*, quiet: bool) -> Iterator[None]:
    """Show people that something is going on, and leave no trace of it."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it

    with Console(stderr=True).status("Starting the sandbox"):
        yield


def _show(sandbox: sandbox_v1.SandboxInfo | sandbox_v1.CreateSandboxResponse, *, as_json: bool) -> None:
    if as_json:
        show_json(as_plain(sandbox))
    else:
        click.echo(sandbox.id)
