"""arcboxctl runtime, docker-env, k8s: the container runtime and Kubernetes of the guest."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click
import trio

from arcbox_client.commands._invocation import CommandGroup, Seconds, common_options, pass_invocation
from arcbox_client.commands._output import as_plain, show_facts, show_json
from arcbox_client.kubeconfig import KubeconfigError, guest_entries, merge_file
from arcbox_client.relay import on_port, relay_from
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from google.protobuf.message import Message

    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation


class _RuntimeCommands(CommandGroup):
    package = __name__.rpartition(".")[0]
    homes: ClassVar = {"ensure": "runtime:ensure", "status": "runtime:status"}


@click.command("runtime", cls=_RuntimeCommands, short_help="The guest's container runtime.")
@common_options
def runtime() -> None:
    """The guest's container runtime: containerd and dockerd."""


@click.command("ensure", short_help="Start it, and wait until it is ready.")
@click.option("--wait", "patience", type=Seconds(min=0), default=120.0, show_default=True, help="Seconds to wait.")
@common_options
@pass_invocation
def ensure(invocation: Invocation, patience: float) -> None:
    """Start the container runtime where it does not run, and wait until it is ready."""

    async def wait(client: AgentClient) -> None:
        kinds = arcbox_v1.ReadinessEvent
        async with client.watch_readiness(start_runtime_if_needed=True, timeout=patience) as events:
            last = [event async for event in events][-1]
        _show(invocation, last, {"endpoint": last.endpoint, "detail": last.detail}, last.services)
        if last.kind != kinds.RUNTIME_READY:
            raise click.ClickException(f"the runtime is not ready: {last.detail or 'the agent gives no reason'}")

    invocation.run(wait)


@click.command("status", short_help="Show what of it answers now.")
@common_options
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show what of the container runtime answers now."""

    async def ask(client: AgentClient) -> None:
        reply = await client.runtime_status()
        facts = {
            "containerd": "ready" if reply.containerd_ready else "not ready",
            "docker": "ready" if reply.docker_ready else "not ready",
            "endpoint": reply.endpoint,
            "detail": reply.detail,
        }
        _show(invocation, reply, facts, reply.services)

    invocation.run(ask)


@click.command("docker-env", context_settings={"allow_interspersed_args": False}, short_help="Use the guest's Docker.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
@common_options
@pass_invocation
def docker_env(invocation: Invocation, cmd: tuple[str, ...]) -> None:
    """Run CMD with DOCKER_HOST set to the guest's Docker.

    Such as: arcboxctl docker-env docker ps. Without CMD, write the line that sets it, and serve it until Ctrl-C.
    """
    exit_code = 0

    async def serve(client: AgentClient) -> None:
        nonlocal exit_code
        reply = await client.runtime_status()
        address = on_port(invocation.where, reply.endpoint)
        with tempfile.TemporaryDirectory(prefix="arcbox-docker-") as directory:
            path = f"{directory}/docker.sock"
            async with relay_from(path, address):
                if not cmd:
                    click.echo(f"export DOCKER_HOST=unix://{path}")
                    sys.stdout.flush()
                    await trio.sleep_forever()
                environment = {**os.environ, "DOCKER_HOST": f"unix://{path}"}
                done = await trio.run_process(list(cmd), env=environment, stdin=None, check=False)
                exit_code = done.returncode if done.returncode >= 0 else 128 - done.returncode

    invocation.run(serve)
    raise click.exceptions.Exit(exit_code)


class _KubernetesCommands(CommandGroup):
    package = __name__.rpartition(".")[0]
    homes: ClassVar = {name: f"runtime:k8s_{name}" for name in ("start", "stop", "delete", "status", "kubeconfig")}


@click.command("k8s", cls=_KubernetesCommands, short_help="The guest's Kubernetes.")
@common_options
def k8s() -> None:
    """The guest's Kubernetes."""


@click.command("start", short_help="Start it, and wait for its API.")
@common_options
@pass_invocation
def k8s_start(invocation: Invocation) -> None:
    """Start Kubernetes, and wait for its API."""

    async def start(client: AgentClient) -> None:
        reply = await client.kubernetes_start()
        _show(invocation, reply, _cluster_facts(reply), ())
        if not reply.running:
            raise click.ClickException(f"Kubernetes does not run: {reply.detail or 'the agent gives no reason'}")

    invocation.run(start)


@click.command("stop", short_help="Stop it.")
@common_options
@pass_invocation
def k8s_stop(invocation: Invocation) -> None:
    """Stop Kubernetes."""
    _ask_and_show_detail(invocation, lambda client: client.kubernetes_stop())


@click.command("delete", short_help="Stop it, and remove all its state.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
@pass_invocation
def k8s_delete(invocation: Invocation, *, yes: bool) -> None:
    """Stop Kubernetes, and remove all its state."""
    if not yes:
        invocation.confirm(f"Delete the Kubernetes of the guest at {invocation.where}?", "this deletes a cluster")
    _ask_and_show_detail(invocation, lambda client: client.kubernetes_delete())


@click.command("status", short_help="Show whether it runs.")
@common_options
@pass_invocation
def k8s_status(invocation: Invocation) -> None:
    """Show whether Kubernetes runs, and whether its API answers."""

    async def ask(client: AgentClient) -> None:
        reply = await client.kubernetes_status()
        _show(invocation, reply, _cluster_facts(reply), reply.services)

    invocation.run(ask)


@click.command("kubeconfig", short_help="Write its kubeconfig, or merge it into yours.")
@click.option("--merge", is_flag=True, help="Merge it into a file, of which nothing else changes.")
@click.option("--use", is_flag=True, help="With --merge: make it the current context.")
@click.option(
    "--file", type=click.Path(path_type=Path), help="Which file.  [default: KUBECONFIG's first, ~/.kube/config]"
)
@common_options
@pass_invocation
def k8s_kubeconfig(invocation: Invocation, *, merge: bool, use: bool, file: Path | None) -> None:
    """Write the kubeconfig of the guest's Kubernetes to stdout, or with --merge into a file.

    What the file had before is kept beside it. With --json: {"context", "endpoint", "kubeconfig" or "file", "backup"}.
    """
    if (use or file is not None) and not merge:
        raise click.UsageError("--use and --file go with --merge")

    async def ask(client: AgentClient) -> None:
        reply = await client.kubernetes_kubeconfig()
        facts = {"context": reply.context_name, "endpoint": reply.endpoint}
        if not merge:
            if invocation.json:
                show_json({**facts, "kubeconfig": reply.kubeconfig})
            else:
                click.echo(reply.kubeconfig, nl=False)
            return
        target = file or _default_kubeconfig()
        try:
            entries = guest_entries(reply.kubeconfig, reply.context_name, reply.endpoint)
            backup = merge_file(target, entries, use=use)
        except KubeconfigError as error:
            raise click.ClickException(f"{target}: {error}") from error
        except OSError as error:
            raise click.ClickException(f"{error.strerror}: {error.filename}") from error
        if invocation.json:
            show_json({**facts, "file": str(target), "backup": str(backup) if backup else None})
        else:
            click.echo(f"context {reply.context_name} is in {target}")

    invocation.run(ask)


def _default_kubeconfig() -> Path:
    first = os.environ.get("KUBECONFIG", "").split(":")[0]
    return Path(first) if first else Path.home() / ".kube" / "config"


def _cluster_facts(reply: arcbox_v1.KubernetesStartResponse | arcbox_v1.KubernetesStatusResponse) -> dict[str, str]:
    return {
        "running": "yes" if reply.running else "no",
        "API": "ready" if reply.api_ready else "not ready",
        "endpoint": reply.endpoint,
        "detail": reply.detail,
    }


def _ask_and_show_detail(
    invocation: Invocation,
    request: Callable[[AgentClient], Awaitable[arcbox_v1.KubernetesStopResponse | arcbox_v1.KubernetesDeleteResponse]],
) -> None:
    async def ask(client: AgentClient) -> None:
        reply = await request(client)
        if invocation.json:
            show_json(as_plain(reply))
        else:
            click.echo(reply.detail or "done")

    invocation.run(ask)


def _show(
    invocation: Invocation, reply: Message, facts: dict[str, str], services: Iterable[arcbox_v1.ServiceStatus]
) -> None:
    if invocation.json:
        show_json(as_plain(reply))
        return
    states = {service.name: " ".join(filter(None, (service.status, service.detail))) for service in services}
    show_facts({name: value for name, value in {**facts, **states}.items() if value})
