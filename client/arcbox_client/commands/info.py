"""arcboxctl info."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import as_plain, human_duration, human_size, show_facts, show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation
    from arcbox_protocol import arcbox_v1


@click.command("info", short_help="Show what the guest is.")
@common_options
@pass_invocation
def command(invocation: Invocation) -> None:
    """Show what the guest is: kernel, system, memory, load, addresses."""

    async def ask(client: AgentClient) -> None:
        info = await client.system_info()
        if invocation.json:
            show_json(as_plain(info))
        else:
            show_facts(_facts(info))

    invocation.run(ask)


def _facts(info: arcbox_v1.SystemInfo) -> dict[str, str]:
    facts = {
        "hostname": info.hostname,
        "system": f"{info.os_name} {info.os_version}".strip(),
        "kernel": info.kernel_version,
        "architecture": info.arch,
        "processors": str(info.cpu_count or ""),
        "memory": f"{human_size(info.available_memory)} of {human_size(info.total_memory)} available",
        "load": " ".join(f"{load:.2f}" for load in info.load_average),
        "up for": human_duration(info.uptime),
        "addresses": ", ".join(info.ip_addresses),
    }
    return {name: value or "unknown" for name, value in facts.items()}
