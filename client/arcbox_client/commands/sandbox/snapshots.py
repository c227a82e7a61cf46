"""arcboxctl sandbox checkpoint, restore, snapshots and snapshot rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import click

from arcbox_client.commands._invocation import CommandGroup, common_options, for_each, pass_invocation
from arcbox_client.commands._output import as_plain, show_json, show_table
from arcbox_client.commands.sandbox._arguments import Duration, KeyValue

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import sandbox_v1

_Labels = tuple[tuple[str, str], ...]


@click.command("checkpoint", short_help="Make a snapshot of a sandbox.")
@click.argument("sandbox_id", metavar="ID")
@click.argument("name", default="")
@click.option("-l", "--label", type=KeyValue(), multiple=True, help="Label it; may be given often.")
@common_options
@pass_invocation
def checkpoint(invocation: Invocation, sandbox_id: str, name: str, label: _Labels) -> None:
    """Make a snapshot of a sandbox that is ready, and write its id. The sandbox stays usable."""

    async def ask(client: AgentClient) -> None:
        reply = await client.checkpoint(sandbox_id, name=name, labels=dict(label))
        if invocation.json:
            show_json(as_plain(reply))
        else:
            click.echo(reply.snapshot_id)

    invocation.run(ask)


@click.command("restore", short_help="Make a sandbox from a snapshot.")
@click.argument("snapshot_id", metavar="SNAPSHOT")
@click.option("--id", "sandbox_id", default="", metavar="ID", help="Its id.  [default: one that is made up]")
@click.option("-l", "--label", type=KeyValue(), multiple=True, help="Label it; may be given often.")
@click.option("--ttl", type=Duration(), default=0, help="Remove it so long after its creation: 90s, 15m, 2h.")
@click.option("--new-address", is_flag=True, help="With an address of its own in place of the snapshot's.")
@common_options
@pass_invocation
def restore(
    invocation: Invocation, snapshot_id: str, *, sandbox_id: str, label: _Labels, ttl: int, new_address: bool
) -> None:
    """Make a new sandbox, with its files as they were, from a snapshot, and write its id."""

    async def ask(client: AgentClient) -> None:
        reply = await client.restore(snapshot_id, sandbox_id, labels=dict(label), ttl=ttl, network_override=new_address)
        if invocation.json:
            show_json(as_plain(reply))
        else:
            click.echo(reply.id)

    invocation.run(ask)


@click.command("snapshots", short_help="List the snapshots.")
@click.argument("sandbox_id", metavar="[ID]", default="")
@click.option("-l", "--label", type=KeyValue(), multiple=True, help="Only those with this label; all of them if often.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@common_options
@pass_invocation
def snapshots(invocation: Invocation, sandbox_id: str, label: _Labels, *, quiet: bool) -> None:
    """List the snapshots, or those of one sandbox, which may be gone."""

    async def ask(client: AgentClient) -> None:
        reply = await client.list_snapshots(sandbox_id, labels=dict(label))
        if invocation.json:
            show_json(as_plain(reply))
        elif quiet:
            for one in reply.snapshots:
                click.echo(one.id)
        else:
            show_table(["ID", "SANDBOX", "NAME", "CREATED", "LABELS"], [_row(one) for one in reply.snapshots])

    invocation.run(ask)


def _row(snapshot: sandbox_v1.SnapshotSummary) -> list[str]:
    labels = ", ".join(f"{name}={value}" for name, value in sorted(snapshot.labels.items()))
    return [snapshot.id, snapshot.sandbox_id, snapshot.name or "-", snapshot.created_at, labels or "-"]


class _Commands(CommandGroup):
    package = __name__.rpartition(".")[0]
    homes: ClassVar = {"rm": "snapshots:rm"}


@click.command("snapshot", cls=_Commands, short_help="Remove snapshots.")
@common_options
def snapshot() -> None:
    """Snapshots of sandboxes."""


@click.command("rm", short_help="Remove snapshots.")
@click.argument("ids", metavar="SNAPSHOT...", nargs=-1, required=True)
@common_options
@pass_invocation
def rm(invocation: Invocation, ids: tuple[str, ...]) -> None:
    """Remove snapshots. Sandboxes that were made from them go on."""

    async def remove(client: AgentClient, snapshot_id: str) -> None:
        await client.delete_snapshot(snapshot_id)

    for_each(invocation, ids, remove, "removed")
