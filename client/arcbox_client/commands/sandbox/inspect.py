"""arcboxctl sandbox inspect."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_size, show_facts, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import sandbox_v1


@click.command("inspect", short_help="Show all that is known of a sandbox.")
@click.argument("sandbox_id", metavar="ID")
@common_options
@pass_invocation
def command(invocation: Invocation, sandbox_id: str) -> None:
    """Show all that is known of a sandbox."""

    async def inspect(client: AgentClient) -> None:
        info = await client.sandbox_inspect(sandbox_id)
        if invocation.json:
            show_json(as_plain(info))
        else:
            show_facts(_facts(info))

    invocation.run(inspect)


def _facts(info: sandbox_v1.SandboxInfo) -> dict[str, str]:
    facts = {
        "id": info.id,
        "state": info.state,
        "error": info.error,
        "created": _time(info.created_at),
        "ready": _time(info.ready_at),
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(info.labels.items())),
        "processors": str(info.limits.vcpus or ""),
        "memory": human_size(info.limits.memory_mib << 20) if info.limits.memory_mib else "",
        "address": info.network.ip_address,
        "gateway": info.network.gateway,
        "last exit": _time(info.last_exited_at),
        "last exit code": str(info.last_exit_code) if info.last_exited_at else "",
    }
    return {name: value for name, value in facts.items() if value}


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ") if seconds else ""
