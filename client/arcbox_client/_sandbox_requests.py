"""The requests about sandboxes and their snapshots."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypedDict

from attrs import frozen

from arcbox_client._requests import Requests
from arcbox_client.sessions import EventStream, ExecSession, RunSession
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from typing import Unpack

_STOP_GRACE = 30
"""Seconds that the agent gives a sandbox whose StopSandboxRequest says 0."""


class SandboxOptions(TypedDict, total=False):
    """What `sandbox_create` takes besides the id. What is left out is the agent's default."""

    labels: Mapping[str, str]
    rootfs: str
    """A directory or a file-system image, in the guest."""

    image: str
    kernel: str
    boot_args: str
    cmd: Sequence[str]
    """Runs once the sandbox is ready."""

    env: Mapping[str, str]
    working_dir: str
    user: str
    """A name, or uid[:gid], of the sandbox's own passwd file."""

    limits: sandbox_v1.ResourceLimits
    mounts: Iterable[sandbox_v1.Mount]
    network: sandbox_v1.NetworkSpec
    ttl_seconds: int
    """Seconds from creation after which the agent removes it; 0 is never."""

    ssh_public_key: str


class ProcessOptions(TypedDict, total=False):
    """What `sandbox_run` and `sandbox_exec` take besides the command."""

    env: Mapping[str, str]
    working_dir: str
    user: str
    """A name, or uid[:gid], of the sandbox's own passwd file."""

    tty: bool
    timeout_seconds: int
    """After so many seconds the agent kills all of it (exit code 137); 0 is never."""


class ExecOptions(ProcessOptions, total=False):
    """What `sandbox_exec` takes besides the command."""

    tty_size: sandbox_v1.TerminalSize
    """80 by 24 where it is left out."""


@frozen(eq=False, kw_only=True)
class SandboxRequests(Requests):
    """Sandboxes: create, use, stop, remove, freeze and copy."""

    async def sandbox_create(
        self, sandbox_id: str = "", **options: Unpack[SandboxOptions]
    ) -> sandbox_v1.CreateSandboxResponse:
        """Begin a sandbox; an empty id lets the agent choose one. It is ready when its event says so.

        Raises:
            ConflictError: the id is in use.
            BadRequestError: the id is no id.
        """
        request = sandbox_v1.CreateSandboxRequest(id=sandbox_id, **options)
        return await self._call(MessageType.SandboxCreateRequest, request, sandbox_v1.CreateSandboxResponse)

    async def sandbox_stop(self, sandbox_id: str, *, timeout_seconds: int = 0) -> None:
        """Stop what runs in a sandbox: SIGTERM, and SIGKILL after `timeout_seconds` (0 is the agent's 30). Slow."""
        request = sandbox_v1.StopSandboxRequest(id=sandbox_id, timeout_seconds=timeout_seconds)
        await self._command(MessageType.SandboxStopRequest, request, slow=True)

    async def sandbox_remove(self, sandbox_id: str, *, force: bool = False) -> None:
        """Remove a sandbox and all that belongs to it. Slow. Raises `ConflictError` while it runs, unless `force`."""
        request = sandbox_v1.RemoveSandboxRequest(id=sandbox_id, force=force)
        await self._command(MessageType.SandboxRemoveRequest, request, slow=True)

    async def sandbox_inspect(self, sandbox_id: str) -> sandbox_v1.SandboxInfo:
        """All that the agent knows of a sandbox."""
        request = sandbox_v1.InspectSandboxRequest(id=sandbox_id)
        return await self._call(MessageType.SandboxInspectRequest, request, sandbox_v1.SandboxInfo)

    async def sandbox_list(
        self, *, state: str = "", labels: Mapping[str, str] | None = None
    ) -> sandbox_v1.ListSandboxesResponse:
        """The sandboxes in this state and with all these labels; empty means any."""
        request = sandbox_v1.ListSandboxesRequest(state=state, labels=labels)
        return await self._call(MessageType.SandboxListRequest, request, sandbox_v1.ListSandboxesResponse)

    @asynccontextmanager
    async def sandbox_run(
        self, sandbox_id: str, cmd: Sequence[str], **options: Unpack[ProcessOptions]
    ) -> AsyncIterator[RunSession]:
        """Run a command in a sandbox that runs nothing else: `async with client.sandbox_run(...) as session:`.

        Whether the agent can run it (no such sandbox, wrong state) shows at the first read of the session.

        Raises:
            ConnectError: there is no further connection to be had for this stream.
        """
        request = sandbox_v1.RunRequest(id=sandbox_id, cmd=cmd, **options)
        async with self._stream(MessageType.SandboxRunRequest, request, sandbox_v1.RunOutput) as (replies, _, _):
            yield RunSession(replies)

    @asynccontextmanager
    async def sandbox_exec(
        self, sandbox_id: str, cmd: Sequence[str], **options: Unpack[ExecOptions]
    ) -> AsyncIterator[ExecSession]:
        """Run a command in a sandbox beside what runs there already, with a stdin and maybe a terminal.

        Its stdin stays open until `close_stdin` or `communicate`. Otherwise as `sandbox_run`.
        """
        request = sandbox_v1.ExecRequest(id=sandbox_id, cmd=cmd, **options)
        async with self._stream(MessageType.SandboxExecRequest, request, sandbox_v1.ExecOutput) as stream:
            yield ExecSession(*stream)

    @asynccontextmanager
    async def sandbox_events(self, sandbox_id: str = "", *, action: str = "") -> AsyncIterator[EventStream]:
        """Events of one sandbox or of all (""), of one action or of all ("").

        What happens after the context was entered is in there, whoever made it happen.
        """
        request = sandbox_v1.SandboxEventsRequest(id=sandbox_id, action=action)
        async with self._stream(MessageType.SandboxEventsRequest, request, sandbox_v1.SandboxEvent) as stream:
            replies, connection, _ = stream
            # Nothing tells that it has begun. But what comes after it on the same connection is answered after that.
            await self._exchange_over(connection, MessageType.PingRequest, None)
            yield EventStream(replies)

    async def checkpoint(
        self, sandbox_id: str, *, name: str = "", labels: Mapping[str, str] | None = None
    ) -> sandbox_v1.CheckpointResponse:
        """Make a snapshot of a sandbox that is ready. Slow."""
        request = sandbox_v1.CheckpointRequest(sandbox_id=sandbox_id, name=name, labels=labels)
        return await self._call(MessageType.SandboxCheckpointRequest, request, sandbox_v1.CheckpointResponse, slow=True)

    async def restore(
        self,
        snapshot_id: str,
        sandbox_id: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        network_override: bool = False,
        ttl_seconds: int = 0,
    ) -> sandbox_v1.RestoreResponse:
        """Make a new sandbox from a snapshot; an empty id lets the agent choose one. Slow."""
        request = sandbox_v1.RestoreRequest(
            id=sandbox_id,
            snapshot_id=snapshot_id,
            labels=labels,
            network_override=network_override,
            ttl_seconds=ttl_seconds,
        )
        return await self._call(MessageType.SandboxRestoreRequest, request, sandbox_v1.RestoreResponse, slow=True)

    async def list_snapshots(
        self, sandbox_id: str = "", *, labels: Mapping[str, str] | None = None
    ) -> sandbox_v1.ListSnapshotsResponse:
        """The snapshots of a sandbox, or of all (""), with all these labels."""
        request = sandbox_v1.ListSnapshotsRequest(sandbox_id=sandbox_id, labels=labels)
        return await self._call(MessageType.SandboxListSnapshotsRequest, request, sandbox_v1.ListSnapshotsResponse)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot; safe for the sandboxes that were made from it."""
        request = sandbox_v1.DeleteSnapshotRequest(snapshot_id=snapshot_id)
        await self._command(MessageType.SandboxDeleteSnapshotRequest, request)
