"""arcboxctl sandbox stop, rm, pause, unpause, update and port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from arcbox_client.commands._invocation import common_options, for_each, pass_invocation
from arcbox_client.commands._output import show_json
from arcbox_client.commands.sandbox._arguments import Duration, SandboxPort

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_client.commands.sandbox._arguments import Protocol

_MARGIN = 60
"""Seconds for the agent's reply once the processes had theirs."""


@click.command("stop", short_help="Stop sandboxes; their files stay.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-t", "--grace", type=Duration(), default=0, help="What runs there has so long to end.  [default: 30s]")
@common_options
@pass_invocation
def stop(invocation: Invocation, ids: tuple[str, ...], grace: int) -> None:
    """Stop sandboxes: what runs there is asked to end, and killed if it does not."""

    async def stop_one(client: AgentClient, sandbox_id: str) -> None:
        patient = client if invocation.timeout is not None else client.within(grace + _MARGIN)
        await patient.sandbox_stop(sandbox_id, timeout=grace)

    for_each(invocation, ids, stop_one, "stopped")


@click.command("rm", short_help="Remove sandboxes.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also while something runs there: it is killed.")
@common_options
@pass_invocation
def rm(invocation: Invocation, ids: tuple[str, ...], *, force: bool) -> None:
    """Remove sandboxes, with all that belongs to them."""

    async def remove(client: AgentClient, sandbox_id: str) -> None:
        await client.sandbox_remove(sandbox_id, force=force)

    for_each(invocation, ids, remove, "removed")


@click.command("pause", short_help="Freeze sandboxes.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@common_options
@pass_invocation
def pause(invocation: Invocation, ids: tuple[str, ...]) -> None:
    """Freeze sandboxes: they keep their memory, and use no processor."""

    async def pause_one(client: AgentClient, sandbox_id: str) -> None:
        await client.sandbox_pause(sandbox_id)

    for_each(invocation, ids, pause_one, "paused")


@click.command("unpause", short_help="Let sandboxes go on.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@common_options
@pass_invocation
def unpause(invocation: Invocation, ids: tuple[str, ...]) -> None:
    """Let paused sandboxes go on."""

    async def resume_one(client: AgentClient, sandbox_id: str) -> None:
        await client.sandbox_resume(sandbox_id)

    for_each(invocation, ids, resume_one, "resumed")


@click.command("update", short_help="Change when sandboxes end by themselves.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--ttl", type=Duration(), help="Remove them so long from now; 0 is never.")
@click.option("--idle", type=Duration(), help="How long nothing may run and nobody ask for anything; 0 is for ever.")
@click.option("--on-idle", type=click.Choice(["kill", "pause"]), help="What happens then.  [default: kill]")
@common_options
@pass_invocation
def update(
    invocation: Invocation,
    ids: tuple[str, ...],
    ttl: int | None,
    idle: int | None,
    on_idle: Literal["kill", "pause"] | None,
) -> None:
    """Change when sandboxes end by themselves. What is not given stays as it is."""

    async def update_one(client: AgentClient, sandbox_id: str) -> None:
        await client.sandbox_set_lifecycle(sandbox_id, ttl=ttl, idle_timeout=idle, on_idle=on_idle)

    for_each(invocation, ids, update_one, "updated")


@click.command("port", short_help="Forward a port of the guest to a sandbox.")
@click.argument("sandbox_id", metavar="ID")
@click.argument("port", metavar="PORT[/udp]", type=SandboxPort())
@click.option("--rm", "remove", is_flag=True, help="Take it back.")
@common_options
@pass_invocation
def port(invocation: Invocation, sandbox_id: str, port: tuple[int, Protocol], *, remove: bool) -> None:
    """Forward a port of the guest to a sandbox's port, and write which one."""
    number, protocol = port

    async def ask(client: AgentClient) -> None:
        if remove:
            await client.port_forward_remove(sandbox_id, number, protocol=protocol)
            return
        guest_port = await client.port_forward(sandbox_id, number, protocol=protocol)
        if invocation.json:
            show_json({"id": sandbox_id, "port": number, "protocol": protocol, "guest_port": guest_port})
        else:
            click.echo(guest_port)

    invocation.run(ask)
