"""SandboxCheckpoint, Restore, ListSnapshots and DeleteSnapshot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_handlers._command import UnaryCommand
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.snapshots import Snapshot
    from arcbox_handlers._command import Context


@frozen
class SandboxCheckpoint(UnaryCommand[sandbox_v1.CheckpointRequest]):
    """Makes a snapshot of a sandbox's files."""

    handles = MessageType.SandboxCheckpointRequest
    slow = True

    async def __call__(self, context: Context) -> sandbox_v1.CheckpointResponse:
        request, manager = self.request, context.guest.sandboxes
        snapshot = await manager.checkpoint(request.sandbox_id, request.name, dict(request.labels))
        return sandbox_v1.CheckpointResponse(
            snapshot_id=snapshot.id,
            snapshot_dir=str(manager.snapshots.path(snapshot.id)),
            created_at=_rfc_3339(snapshot.created_at),
        )


@frozen
class SandboxRestore(UnaryCommand[sandbox_v1.RestoreRequest]):
    """Makes a sandbox from a snapshot. It has an address of its own, whatever `network_override` says."""

    handles = MessageType.SandboxRestoreRequest
    slow = True

    async def __call__(self, context: Context) -> sandbox_v1.RestoreResponse:
        request = self.request
        sandbox = await context.guest.sandboxes.restore(
            request.snapshot_id, request.id, dict(request.labels), float(request.ttl_seconds)
        )
        return sandbox_v1.RestoreResponse(id=sandbox.id, ip_address=sandbox.ip_address)


@frozen
class SandboxListSnapshots(UnaryCommand[sandbox_v1.ListSnapshotsRequest]):
    """The snapshots of a sandbox or of all, with some labels."""

    handles = MessageType.SandboxListSnapshotsRequest

    async def __call__(self, context: Context) -> sandbox_v1.ListSnapshotsResponse:
        manager = context.guest.sandboxes
        await manager.opened()
        found = manager.snapshots.list(self.request.sandbox_id, dict(self.request.labels))
        return sandbox_v1.ListSnapshotsResponse(
            snapshots=[_summary(snapshot, str(manager.snapshots.path(snapshot.id))) for snapshot in found]
        )


@frozen
class SandboxDeleteSnapshot(UnaryCommand[sandbox_v1.DeleteSnapshotRequest]):
    """Removes a snapshot. Sandboxes that were made from it go on."""

    handles = MessageType.SandboxDeleteSnapshotRequest

    async def __call__(self, context: Context) -> None:
        await context.guest.sandboxes.delete_snapshot(self.request.snapshot_id)


def _summary(snapshot: Snapshot, directory: str) -> sandbox_v1.SnapshotSummary:
    return sandbox_v1.SnapshotSummary(
        id=snapshot.id,
        sandbox_id=snapshot.sandbox_id,
        name=snapshot.name,
        labels=snapshot.labels,
        snapshot_dir=directory,
        created_at=_rfc_3339(snapshot.created_at),
    )


def _rfc_3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
