"""arcboxctl sandbox create."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Unpack

import click

from arcbox_client.commands._invocation import ProcessCommand, common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_json
from arcbox_client.commands.sandbox._arguments import (
    BindMount,
    Duration,
    KeyValue,
    Mebibytes,
    ProcessOptions,
    process_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client._sandbox_requests import Mount, SandboxOptions
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import sandbox_v1


class _Options(ProcessOptions):
    sandbox_id: str
    rootfs: str
    image: str
    network: Literal["tap", "none"] | None
    label: tuple[tuple[str, str], ...]
    memory: int
    cpus: int
    mount: tuple[Mount, ...]
    ttl: int
    cmd: tuple[str, ...]


@click.command(
    "create",
    cls=ProcessCommand,
    short_help="Create a sandbox.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--id", "sandbox_id", default="", metavar="ID", help="Its id.  [default: one that is made up]")
@click.option("--rootfs", default="", metavar="PATH", help="Directory or file-system image, in the guest.")
@click.option("--image", default="", metavar="REFERENCE", help="OCI image in place of a root file system.")
@click.option(
    "--network", type=click.Choice(["tap", "none"]), default=None, help="An address, or loopback only.  [default: tap]"
)
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
def create(invocation: Invocation, /, *, wait: bool, **options: Unpack[_Options]) -> None:
    """Create a sandbox, and write its id once it is ready.

    CMD runs in it from then on. With --json: all that is known of the sandbox.
    """

    async def ask(client: AgentClient) -> None:
        with _spinner(quiet=invocation.json or not wait):
            reply = await _request(client, options)
            sandbox = await client.sandbox_wait_ready(reply.id) if wait else reply
        if invocation.json:
            show_json(as_plain(sandbox))
        else:
            click.echo(sandbox.id)

    invocation.run(ask)


async def _request(client: AgentClient, options: _Options) -> sandbox_v1.CreateSandboxResponse:
    wire: SandboxOptions = {
        "image": options["image"],
        "rootfs": options["rootfs"],
        "labels": dict(options["label"]),
        "env": dict(options["env"]),
        "vcpus": options["cpus"],
        "memory_mib": options["memory"],
        "mounts": options["mount"],
        "ttl": options["ttl"],
        "user": options["user"],
        "working_dir": options["workdir"],
        "cmd": options["cmd"],
    }
    if options["network"] is not None:
        wire["network"] = options["network"]
    return await client.sandbox_create(options["sandbox_id"], **wire)


@contextmanager
def _spinner(*, quiet: bool) -> Iterator[None]:
    """Show people that something is going on, and leave no trace of it."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it

    with Console(stderr=True).status("Starting the sandbox"):
        yield
