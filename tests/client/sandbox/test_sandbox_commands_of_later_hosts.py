"""arcboxctl for what later hosts know: executions, files, snapshots, ports, statistics, runtime, Kubernetes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import yaml

from arcbox_client.testing import FakeAgent
from arcbox_protocol import ErrorReply, MessageType, arcbox_v1, sandbox_v1
from arcbox_protocol import arcbox_sandbox_v1 as wire

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from arcbox_client.testing import Answer, Request, Script
    from tests.client.sandbox.conftest import Cli

T = MessageType

EXITED = wire.Execution(
    id="job", state=wire.EXECUTION_STATE_EXITED, exit_status=wire.ExitStatus(code=3), stdout_len=10, stderr_len=3
)


def output(channel: wire.StdioChannel, offset: int, data: bytes) -> wire.ExecutionEvent:
    return wire.ExecutionEvent(output=wire.ExecutionOutput(channel=channel, offset=offset, data=data))


def job() -> Script:
    events = [
        output(wire.STDIO_CHANNEL_STDOUT, 5, b"hello"),
        output(wire.STDIO_CHANNEL_STDERR, 0, b"no\n"),
        wire.ExecutionEvent(exited=wire.ExecutionExited(execution=EXITED)),
    ]
    return {
        T.StartExecutionRequest: lambda _: wire.Execution(id="job", state=wire.EXECUTION_STATE_RUNNING),
        T.AttachExecutionRequest: lambda _: list(events),
        T.WaitExecutionRequest: lambda _: EXITED,
        T.ListExecutionsRequest: lambda _: wire.ListExecutionsResponse(executions=[EXITED]),
        T.SignalExecutionRequest: lambda _: None,
    }


async def test_what_is_detached_is_listed_shown_and_signalled(cli: Cli) -> None:
    requests = cli.serve(job())
    assert await cli.sandbox("run", "-d", "-i", "--name", "job", "box", "sleep", "9") == (0, b"job\n", b"")
    assert requests[0].message == wire.StartExecutionRequest(
        sandbox_id="box", execution_id="job", cmd=["sleep", "9"], stdin=True
    )
    rows = (await cli.sandbox("ps", "box")).stdout.decode().splitlines()
    assert [row.split("  ")[0] for row in rows] == ["EXECUTION", "job"]
    assert "exited 3" in rows[1]
    assert await cli.sandbox("kill", "-s", "term", "box", "job") == (0, b"job\n", b"")
    assert requests[-1].message == wire.SignalExecutionRequest(
        sandbox_id="box", execution_id="job", signal=wire.SIGNAL_SIGTERM
    )
    assert (await cli.sandbox("kill", "-s", "bogus", "box", "job")).returncode == 2


async def test_attach_shows_output_with_its_gaps_and_exits_as_the_execution_did(cli: Cli) -> None:
    cli.serve(job())
    result = await cli.sandbox("attach", "box", "job")
    assert (result.returncode, result.stdout) == (3, b"hello")
    assert result.stderr == b"arcboxctl: 5 bytes of stdout are not kept any more\nno\n"
    assert (await cli.sandbox("logs", "box", "job")).stdout == b"hello"
    lines = [json.loads(line) for line in (await cli.sandbox("attach", "--json", "box", "job")).stdout.splitlines()]
    assert lines[0] == {"stream": "stdout", "offset": 5, "data": "aGVsbG8="}
    assert lines[-1] == {"stream": "exit", "exit_code": 3}


async def test_attach_to_what_does_not_exist_is_exit_code_125(cli: Cli) -> None:
    cli.serve({T.WaitExecutionRequest: lambda _: ErrorReply(404, "no execution job")})
    assert await cli.sandbox("attach", "box", "job") == (
        125,
        b"",
        b"arcboxctl: WaitExecutionRequest: no execution job (404)\n",
    )


class Tree:
    """A sandbox's files, in memory; None is a directory."""

    def __init__(self, files: dict[str, bytes | None]) -> None:
        self.files = files
        self._writing: dict[str, tuple[str, bytes]] = {}

    async def serve(self, agent: FakeAgent) -> None:
        while True:
            request = await agent.receive()
            for reply in self._replies(request):
                await agent.reply(request, reply)
            if request.type == T.SandboxFileChunk and wire_chunk(request).done:
                opened = next(one for one in agent.requests if one.trace_id == request.trace_id)
                path = opened.message.path  # type: ignore[attr-defined]  # a WriteFileOpen
                pieces = [one for one in agent.requests if one.type == T.SandboxFileChunk]
                self.files[path] = b"".join(wire_chunk(one).data for one in pieces)
                await agent.reply(opened)

    def _replies(self, request: Request) -> list[Answer]:
        path = getattr(request.message, "path", "") if request.type != T.SandboxFileChunk else ""
        if request.type == T.StatFileRequest:
            return [self._stat(path) if path in self.files else ErrorReply(404, f"no {path}")]
        if request.type == T.ListDirRequest:
            inside = [name for name in self.files if name.rpartition("/")[0] == path]
            return [wire.ListDirResponse(entries=[self._stat(name) for name in inside])]
        if request.type == T.MakeDirRequest:
            self.files[path] = None
            return [None]
        if request.type == T.SandboxFileReadRequest:
            return [sandbox_v1.FileChunk(data=self.files[path] or b""), sandbox_v1.FileChunk(done=True)]
        return []

    def _stat(self, path: str) -> wire.FileStat:
        data = self.files[path]
        kind = wire.FILE_KIND_DIRECTORY if data is None else wire.FILE_KIND_FILE
        return wire.FileStat(name=path.rpartition("/")[2], kind=kind, size=len(data or b""), mode=0o644)


def wire_chunk(request: Request) -> sandbox_v1.FileChunk:
    return sandbox_v1.FileChunk.FromString(request.payload)


async def test_directories_are_copied_in_and_out(cli: Cli, directory: Path) -> None:
    tree = Tree({"/srv": None})
    cli.serve_talk(tree.serve)
    source = directory / "site"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_bytes(b"A" * 100)
    (source / "deep" / "b").write_bytes(b"")
    result = await cli.sandbox("cp", "--json", str(source), "box:/srv")
    assert json.loads(result.stdout) == {"files": 2, "bytes": 100}
    assert tree.files == {
        "/srv": None,
        "/srv/site": None,
        "/srv/site/a": b"A" * 100,
        "/srv/site/deep": None,
        "/srv/site/deep/b": b"",
    }
    assert (await cli.sandbox("cp", "box:/srv/site", str(directory / "back"))).returncode == 0
    assert (directory / "back" / "a").read_bytes() == b"A" * 100
    assert (directory / "back" / "deep" / "b").read_bytes() == b""
    assert (await cli.sandbox("cp", "-", "box:/srv/c", stdin=b"piped")).returncode == 0
    assert (await cli.sandbox("cp", "box:/srv/c", "-")).stdout == b"piped"


async def test_what_can_not_be_copied_is_one_line(cli: Cli, directory: Path) -> None:
    tree = Tree({"/": None, "/../evil": b"x"})
    cli.serve_talk(tree.serve)
    missing = await cli.sandbox("cp", str(directory / "none"), "box:/")
    assert (missing.returncode, missing.stderr.decode()) == (
        1,
        f"arcboxctl: No such file or directory: {directory}/none\n",
    )
    for arguments in (("a", "b"), ("x:/a", "y:/b")):
        assert (await cli.sandbox("cp", *arguments)).returncode == 2


async def test_snapshots_are_made_listed_restored_and_removed(cli: Cli) -> None:
    summary = sandbox_v1.SnapshotSummary(id="s1", sandbox_id="box", name="nightly", created_at="2026-01-01T00:00:00Z")
    requests = cli.serve(
        {
            T.SandboxCheckpointRequest: lambda _: sandbox_v1.CheckpointResponse(snapshot_id="s1"),
            T.SandboxListSnapshotsRequest: lambda _: sandbox_v1.ListSnapshotsResponse(snapshots=[summary]),
            T.SandboxRestoreRequest: lambda _: sandbox_v1.RestoreResponse(id="copy"),
            T.SandboxDeleteSnapshotRequest: lambda _: None,
        }
    )
    assert (await cli.sandbox("checkpoint", "box", "nightly")).stdout == b"s1\n"
    assert b"nightly" in (await cli.sandbox("snapshots")).stdout
    assert (await cli.sandbox("restore", "s1", "--id", "copy", "--ttl", "1m")).stdout == b"copy\n"
    assert (await cli.sandbox("snapshot", "rm", "s1")).stdout == b"s1\n"
    assert [request.message for request in requests[::2]] == [
        sandbox_v1.CheckpointRequest(sandbox_id="box", name="nightly"),
        sandbox_v1.RestoreRequest(id="copy", snapshot_id="s1", ttl_seconds=60),
    ]


async def test_ports_are_forwarded_and_sandboxes_paused(cli: Cli) -> None:
    requests = cli.serve(
        {
            T.SandboxPortForwardRequest: lambda _: sandbox_v1.SandboxPortForwardResponse(guest_port=40001),
            T.SandboxPortForwardRemoveRequest: lambda _: None,
            T.PauseSandboxRequest: lambda _: None,
            T.ResumeSandboxRequest: lambda _: wire.SandboxResumeResponse(),
            T.SetLifecycleRequest: lambda _: None,
        }
    )
    assert (await cli.sandbox("port", "box", "53/udp")).stdout == b"40001\n"
    assert (await cli.sandbox("port", "--rm", "box", "80")).returncode == 0
    assert (await cli.sandbox("pause", "a", "b")).stdout == b"a\nb\n"
    assert (await cli.sandbox("unpause", "a")).stdout == b"a\n"
    assert (await cli.sandbox("update", "a", "--ttl", "1h", "--on-idle", "pause")).stdout == b"a\n"
    assert requests[-1].message == wire.SetLifecycleRequest(id="a", ttl_seconds=3600, on_idle=wire.IDLE_ACTION_PAUSE)
    assert requests[0].message == sandbox_v1.SandboxPortForwardRequest(
        id="box", sandbox_port=53, protocol=sandbox_v1.PORT_PROTOCOL_UDP
    )


async def test_top_shows_what_happened_between_two_samples(cli: Cli) -> None:
    samples = [
        arcbox_v1.MachineStats(
            monotonic_ms=1000 * number,
            cpu_busy_ticks=50 * number,
            cpu_total_ticks=200 * number,
            online_cpus=2,
            memory_total_bytes=1 << 30,
            memory_available_bytes=1 << 29,
            memory_psi_full_avg10=-1,
            disk_read_bytes=1024 * number,
            containers=[arcbox_v1.ContainerStats(id="c" * 64, cpu_usage_usec=500_000 * number, pids=3)],
        )
        for number in (1, 2)
    ]
    cli.serve({T.WatchStatsRequest: lambda _: list(samples)})
    shown = (await cli.arcboxctl("top", "-n", "2")).stdout.decode().rpartition("processors: ")[2]
    assert shown.startswith(
        "25 % of 2, load 0.00\nmemory: 512.0 MiB of 1.0 GiB\ndisks: 1.0 KiB/s read, 0 B/s written\n"
    )
    assert "cccccccccccc  50 %" in shown
    assert json.loads((await cli.arcboxctl("--json", "top", "-n", "1")).stdout)["cpu_total_ticks"] == 200


async def test_the_runtime_and_kubernetes_are_started_and_looked_at(cli: Cli) -> None:
    kinds = arcbox_v1.ReadinessEvent
    ready = [kinds(kind=kinds.AGENT_READY), kinds(kind=kinds.RUNTIME_READY, endpoint="vsock:2375")]
    failed = kinds(kind=kinds.RUNTIME_FAILED, detail="no dockerd")
    answers: list[list[Answer]] = [[*ready], [failed]]
    services = [arcbox_v1.ServiceStatus(name="containerd", status="ready")]
    cli.serve(
        {
            T.WatchReadinessRequest: lambda _: answers.pop(0),
            T.RuntimeStatusRequest: lambda _: arcbox_v1.RuntimeStatusResponse(docker_ready=True, services=services),
            T.KubernetesStartRequest: lambda _: arcbox_v1.KubernetesStartResponse(detail="k3s is missing"),
            T.KubernetesStatusRequest: lambda _: arcbox_v1.KubernetesStatusResponse(running=True, services=services),
            T.KubernetesStopRequest: lambda _: arcbox_v1.KubernetesStopResponse(stopped=True, detail="stopped"),
        }
    )
    assert (await cli.arcboxctl("runtime", "ensure")).stdout == b"endpoint: vsock:2375\n"
    assert await cli.arcboxctl("runtime", "ensure") == (
        1,
        b"detail: no dockerd\n",
        b"arcboxctl: the runtime is not ready: no dockerd\n",
    )
    assert b"docker: ready\n" in (await cli.arcboxctl("runtime", "status")).stdout
    assert (await cli.arcboxctl("k8s", "start")).stderr == b"arcboxctl: Kubernetes does not run: k3s is missing\n"
    assert b"running: yes\n" in (await cli.arcboxctl("k8s", "status")).stdout
    assert (await cli.arcboxctl("k8s", "stop")).stdout == b"stopped\n"
    assert (await cli.arcboxctl("k8s", "delete")).returncode == 2


async def test_the_kubeconfig_is_written_or_merged(cli: Cli, directory: Path) -> None:
    config = {
        "clusters": [{"name": "default", "cluster": {"server": "https://127.0.0.1:6443"}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "users": [{"name": "default", "user": {"token": "t"}}],
    }
    reply = arcbox_v1.KubernetesKubeconfigResponse(
        kubeconfig=yaml.safe_dump(config), context_name="arcbox", endpoint="https://127.0.0.1:16443"
    )
    cli.serve({T.KubernetesKubeconfigRequest: lambda _: reply})
    assert yaml.safe_load((await cli.arcboxctl("k8s", "kubeconfig")).stdout) == config
    target = directory / "config"
    result = await cli.arcboxctl("k8s", "kubeconfig", "--merge", "--use", KUBECONFIG=f"{target}:/elsewhere")
    assert result == (0, f"context arcbox is in {target}\n".encode(), b"")
    merged = yaml.safe_load(target.read_text())
    assert merged["current-context"] == "arcbox"
    assert merged["clusters"] == [{"name": "arcbox", "cluster": {"server": "https://127.0.0.1:16443"}}]
    assert (await cli.arcboxctl("k8s", "kubeconfig", "--use")).returncode == 2


DOCKER = """
import os, socket
docker = socket.socket(socket.AF_UNIX)
docker.connect(os.environ["DOCKER_HOST"].removeprefix("unix://"))
docker.sendall(b"ping")
docker.shutdown(socket.SHUT_WR)
print(docker.makefile().read())
raise SystemExit(7)
"""


async def test_docker_env_relays_to_the_guests_docker(cli: Cli) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        """A VMM with an agent on port 1024 and Docker on port 2375."""
        line = await stream.receive_some(16)
        await stream.send_all(b"OK 1\n")
        if line == b"CONNECT 1024\n":
            status = arcbox_v1.RuntimeStatusResponse(endpoint="vsock:2375")
            await FakeAgent(stream).serve({T.RuntimeStatusRequest: lambda _: status})
            return
        assert line == b"CONNECT 2375\n"
        async for data in stream:
            await stream.send_all(b"docker says " + data)

    cli.listener.serve = serve
    address = f"{cli.listener.address}?port=1024"
    result = await cli.arcboxctl("docker-env", sys.executable, "-c", DOCKER, ARCBOX_CONNECT=address)
    assert result == (7, b"docker says ping\n", b"")


async def test_docker_env_needs_an_address_with_ports(cli: Cli) -> None:
    cli.serve({T.RuntimeStatusRequest: lambda _: arcbox_v1.RuntimeStatusResponse(endpoint="vsock:2375")})
    result = await cli.arcboxctl("docker-env", "true")
    assert result.returncode == 2
    assert b"there is no port 2375" in result.stderr
