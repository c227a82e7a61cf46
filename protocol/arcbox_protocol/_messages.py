"""The message types, and the one table of what goes with what: request, payload, reply."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_protocol.proto import arcbox_v1_pb2 as arcbox_v1
from arcbox_protocol.proto import sandbox_v1_pb2 as sandbox_v1

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message


class MessageType(IntEnum):
    """The type field of a frame. Members bear the names of the protocol page, which error texts show."""

    Empty = 0x0000
    PingRequest = 0x0001
    GetSystemInfoRequest = 0x0002
    EnsureRuntimeRequest = 0x0003
    RuntimeStatusRequest = 0x0004
    KubernetesStartRequest = 0x0005
    KubernetesStopRequest = 0x0006
    KubernetesDeleteRequest = 0x0007
    KubernetesStatusRequest = 0x0008
    KubernetesKubeconfigRequest = 0x0009
    ShutdownRequest = 0x000A
    MmapReadFileRequest = 0x000B
    DiskTrimRequest = 0x000C
    SandboxCreateRequest = 0x0020
    SandboxStopRequest = 0x0021
    SandboxRemoveRequest = 0x0022
    SandboxInspectRequest = 0x0023
    SandboxListRequest = 0x0024
    SandboxRunRequest = 0x0030
    SandboxExecRequest = 0x0031
    SandboxEventsRequest = 0x0032
    SandboxExecInput = 0x0033
    SandboxExecResize = 0x0034
    SandboxCheckpointRequest = 0x0040
    SandboxRestoreRequest = 0x0041
    SandboxListSnapshotsRequest = 0x0042
    SandboxDeleteSnapshotRequest = 0x0043
    PingResponse = 0x1001
    GetSystemInfoResponse = 0x1002
    EnsureRuntimeResponse = 0x1003
    RuntimeStatusResponse = 0x1004
    KubernetesStartResponse = 0x1005
    KubernetesStopResponse = 0x1006
    KubernetesDeleteResponse = 0x1007
    KubernetesStatusResponse = 0x1008
    KubernetesKubeconfigResponse = 0x1009
    ShutdownResponse = 0x100A
    MmapReadFileResponse = 0x100B
    DiskTrimResponse = 0x100C
    SandboxCreateResponse = 0x1020
    SandboxStopResponse = 0x1021
    SandboxRemoveResponse = 0x1022
    SandboxInspectResponse = 0x1023
    SandboxListResponse = 0x1024
    PortBindingsChanged = 0x1030
    PortBindingsRemoved = 0x1031
    SandboxRunOutput = 0x1035
    SandboxExecOutput = 0x1036
    SandboxEvent = 0x1037
    SandboxCheckpointResponse = 0x1040
    SandboxRestoreResponse = 0x1041
    SandboxListSnapshotsResponse = 0x1042
    SandboxDeleteSnapshotResponse = 0x1043
    Error = 0xFFFF


@frozen
class Exchange:
    """A request that a peer may send, and what answers it."""

    request: MessageType
    request_message: type[Message] | None
    """The protobuf message in the request's payload; None where that is raw bytes, or ignored."""

    reply: MessageType | None
    """None where nothing answers: input for a session that runs already."""

    reply_message: type[Message] | None
    """The protobuf message in the reply's payload; None where that is empty."""

    streams: bool = False
    """Whether there may be any number of replies, the stream's own last one included."""


_T = MessageType

# A type means the same message wherever it stands, so the table has two halves: what a type carries, and
# which type answers it. The types without a message carry raw bytes, nothing, or nothing that is read.
_MESSAGES: Mapping[int, type[Message]] = {
    _T.PingRequest: arcbox_v1.AgentPingRequest,
    _T.PingResponse: arcbox_v1.AgentPingResponse,
    _T.GetSystemInfoResponse: arcbox_v1.SystemInfo,
    _T.EnsureRuntimeRequest: arcbox_v1.RuntimeEnsureRequest,
    _T.EnsureRuntimeResponse: arcbox_v1.RuntimeEnsureResponse,
    _T.RuntimeStatusRequest: arcbox_v1.RuntimeStatusRequest,
    _T.RuntimeStatusResponse: arcbox_v1.RuntimeStatusResponse,
    _T.KubernetesStartRequest: arcbox_v1.KubernetesStartRequest,
    _T.KubernetesStartResponse: arcbox_v1.KubernetesStartResponse,
    _T.KubernetesStopRequest: arcbox_v1.KubernetesStopRequest,
    _T.KubernetesStopResponse: arcbox_v1.KubernetesStopResponse,
    _T.KubernetesDeleteRequest: arcbox_v1.KubernetesDeleteRequest,
    _T.KubernetesDeleteResponse: arcbox_v1.KubernetesDeleteResponse,
    _T.KubernetesStatusRequest: arcbox_v1.KubernetesStatusRequest,
    _T.KubernetesStatusResponse: arcbox_v1.KubernetesStatusResponse,
    _T.KubernetesKubeconfigRequest: arcbox_v1.KubernetesKubeconfigRequest,
    _T.KubernetesKubeconfigResponse: arcbox_v1.KubernetesKubeconfigResponse,
    _T.ShutdownRequest: arcbox_v1.ShutdownRequest,
    _T.ShutdownResponse: arcbox_v1.ShutdownResponse,
    _T.MmapReadFileRequest: arcbox_v1.MmapReadFileRequest,
    _T.MmapReadFileResponse: arcbox_v1.MmapReadFileResponse,
    _T.DiskTrimRequest: arcbox_v1.DiskTrimRequest,
    _T.DiskTrimResponse: arcbox_v1.DiskTrimResponse,
    _T.SandboxCreateRequest: sandbox_v1.CreateSandboxRequest,
    _T.SandboxCreateResponse: sandbox_v1.CreateSandboxResponse,
    _T.SandboxStopRequest: sandbox_v1.StopSandboxRequest,
    _T.SandboxRemoveRequest: sandbox_v1.RemoveSandboxRequest,
    _T.SandboxInspectRequest: sandbox_v1.InspectSandboxRequest,
    _T.SandboxInspectResponse: sandbox_v1.SandboxInfo,
    _T.SandboxListRequest: sandbox_v1.ListSandboxesRequest,
    _T.SandboxListResponse: sandbox_v1.ListSandboxesResponse,
    _T.SandboxRunRequest: sandbox_v1.RunRequest,
    _T.SandboxRunOutput: sandbox_v1.RunOutput,
    _T.SandboxExecRequest: sandbox_v1.ExecRequest,
    _T.SandboxExecOutput: sandbox_v1.ExecOutput,
    _T.SandboxEventsRequest: sandbox_v1.SandboxEventsRequest,
    _T.SandboxEvent: sandbox_v1.SandboxEvent,
    _T.SandboxExecResize: sandbox_v1.TerminalSize,
    _T.SandboxCheckpointRequest: sandbox_v1.CheckpointRequest,
    _T.SandboxCheckpointResponse: sandbox_v1.CheckpointResponse,
    _T.SandboxRestoreRequest: sandbox_v1.RestoreRequest,
    _T.SandboxRestoreResponse: sandbox_v1.RestoreResponse,
    _T.SandboxListSnapshotsRequest: sandbox_v1.ListSnapshotsRequest,
    _T.SandboxListSnapshotsResponse: sandbox_v1.ListSnapshotsResponse,
    _T.SandboxDeleteSnapshotRequest: sandbox_v1.DeleteSnapshotRequest,
    _T.PortBindingsChanged: arcbox_v1.PortBindingsChanged,
    _T.PortBindingsRemoved: arcbox_v1.PortBindingsRemoved,
}

_REPLIES: Mapping[MessageType, MessageType | None] = {
    _T.PingRequest: _T.PingResponse,
    _T.GetSystemInfoRequest: _T.GetSystemInfoResponse,
    _T.EnsureRuntimeRequest: _T.EnsureRuntimeResponse,
    _T.RuntimeStatusRequest: _T.RuntimeStatusResponse,
    _T.KubernetesStartRequest: _T.KubernetesStartResponse,
    _T.KubernetesStopRequest: _T.KubernetesStopResponse,
    _T.KubernetesDeleteRequest: _T.KubernetesDeleteResponse,
    _T.KubernetesStatusRequest: _T.KubernetesStatusResponse,
    _T.KubernetesKubeconfigRequest: _T.KubernetesKubeconfigResponse,
    _T.ShutdownRequest: _T.ShutdownResponse,
    _T.MmapReadFileRequest: _T.MmapReadFileResponse,
    _T.DiskTrimRequest: _T.DiskTrimResponse,
    _T.SandboxCreateRequest: _T.SandboxCreateResponse,
    _T.SandboxStopRequest: _T.SandboxStopResponse,
    _T.SandboxRemoveRequest: _T.SandboxRemoveResponse,
    _T.SandboxInspectRequest: _T.SandboxInspectResponse,
    _T.SandboxListRequest: _T.SandboxListResponse,
    _T.SandboxRunRequest: _T.SandboxRunOutput,
    _T.SandboxExecRequest: _T.SandboxExecOutput,
    _T.SandboxEventsRequest: _T.SandboxEvent,
    _T.SandboxExecInput: None,
    _T.SandboxExecResize: None,
    _T.SandboxCheckpointRequest: _T.SandboxCheckpointResponse,
    _T.SandboxRestoreRequest: _T.SandboxRestoreResponse,
    _T.SandboxListSnapshotsRequest: _T.SandboxListSnapshotsResponse,
    _T.SandboxDeleteSnapshotRequest: _T.SandboxDeleteSnapshotResponse,
}

_STREAMS = frozenset({_T.SandboxRunRequest, _T.SandboxExecRequest, _T.SandboxEventsRequest})

EXCHANGES: Final[Mapping[int, Exchange]] = MappingProxyType(
    {
        request: Exchange(
            request,
            _MESSAGES.get(request),
            reply,
            None if reply is None else _MESSAGES.get(reply),
            streams=request in _STREAMS,
        )
        for request, reply in _REPLIES.items()
    }
)
"""Every request of the protocol, by its type."""

NOTIFICATIONS: Final[Mapping[int, type[Message]]] = MappingProxyType(
    {notification: _MESSAGES[notification] for notification in (_T.PortBindingsChanged, _T.PortBindingsRemoved)}
)
"""What the agent says without having been asked, by its type."""


def describe_type(message_type: int) -> str:
    """A message type as people read it: its number, and its name where it has one."""
    try:
        return f"0x{message_type:04X} ({MessageType(message_type).name})"
    except ValueError:
        return f"0x{message_type:04X}"
