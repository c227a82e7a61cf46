"""arcboxctl version and completion: arcboxctl itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from arcbox_client.commands._invocation import COMPLETION_VARIABLE, common_options, pass_invocation
from arcbox_client.commands._output import show_json
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


@click.command("version", short_help="Show the versions of both ends.")
@common_options
@pass_invocation
def version(invocation: Invocation) -> None:
    """Show the version of arcboxctl and, where an address is given, of the agent."""
    versions: dict[str, str | None] = {"arcboxctl": __version__, "agent": None}

    async def ask(client: AgentClient) -> None:
        versions["agent"] = (await client.ping()).version

    try:
        if invocation.where:
            invocation.run(ask)
    finally:
        if invocation.json:
            show_json(versions)
        else:
            for name, version in versions.items():
                if version is not None:
                    click.echo(f"{name} {version}")


@click.command("completion", short_help="Write a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
@pass_invocation
@click.pass_context
def completion(ctx: click.Context, invocation: Invocation, shell: str) -> None:
    """Write the script that lets a shell complete arcboxctl's arguments.

    \b
    bash:  eval "$(arcboxctl completion bash)"    in ~/.bashrc
    zsh:   eval "$(arcboxctl completion zsh)"     in ~/.zshrc
    fish:  arcboxctl completion fish > ~/.config/fish/completions/arcboxctl.fish
    """  # noqa: D301  click wants the control character itself before what is not to be wrapped
    complete = get_completion_class(shell)
    if complete is None:
        raise click.UsageError(f"no completion for {shell}")
    script = complete(ctx.find_root().command, {}, "arcboxctl", COMPLETION_VARIABLE).source()
    if invocation.json:
        show_json({"shell": shell, "script": script})
    else:
        click.echo(script)
