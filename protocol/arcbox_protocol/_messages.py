"""The message types, and the one table of what goes with what: request, payload, reply."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_protocol.proto import arcbox_sandbox_v1_pb2 as arcbox_sandbox_v1
from arcbox_protocol.proto import arcbox_v1_pb2 as arcbox_v1
from arcbox_protocol.proto import sandbox_v1_pb2 as sandbox_v1

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

PROTOCOL_VERSION: Final = 1
"""What Ping reports: hosts from 0.4.17 on want at least 1."""


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
    WatchReadinessRequest = 0x000D
    KillAgentRequest = 0x000E
    WatchMemoryPressureRequest = 0x000F
    WatchStatsRequest = 0x0010
    SandboxCreateRequest = 0x0020
    SandboxStopRequest = 0x0021
    SandboxRemoveRequest = 0x0022
    SandboxInspectRequest = 0x0023
    SandboxListRequest = 0x0024
    SandboxPortForwardRequest = 0x0025
    SandboxPortForwardRemoveRequest = 0x0026
    SandboxRunRequest = 0x0030
    SandboxExecRequest = 0x0031
    SandboxEventsRequest = 0x0032
    SandboxExecInput = 0x0033
    SandboxExecResize = 0x0034
    SandboxFileReadRequest = 0x0035
    SandboxFileWriteRequest = 0x0036
    SandboxFileChunk = 0x0037
    StatFileRequest = 0x0038
    ListDirRequest = 0x0039
    MakeDirRequest = 0x003A
    RemoveEntryRequest = 0x003B
    MoveEntryRequest = 0x003C
    WatchDirRequest = 0x003D
    SandboxCheckpointRequest = 0x0040
    SandboxRestoreRequest = 0x0041
    SandboxListSnapshotsRequest = 0x0042
    SandboxDeleteSnapshotRequest = 0x0043
    PauseSandboxRequest = 0x0044
    ResumeSandboxRequest = 0x0045
    SetLifecycleRequest = 0x0046
    MachineExecRequest = 0x0050
    MachineExecInput = 0x0051
    MachineExecResize = 0x0052
    StartExecutionRequest = 0x0060
    AttachExecutionRequest = 0x0061
    WriteStdinRequest = 0x0062
    GetStdinStatusRequest = 0x0063
    SignalExecutionRequest = 0x0064
    ResizeExecutionTtyRequest = 0x0065
    WaitExecutionRequest = 0x0066
    ListExecutionsRequest = 0x0067
    WaitForPortRequest = 0x0068
    WatchPortBindingsRequest = 0x0F01  # this project's own
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
    ReadinessEvent = 0x100D
    KillAgentResponse = 0x100E
    MemoryPressureEvent = 0x100F
    MachineStats = 0x1010
    SandboxCreateResponse = 0x1020
    SandboxStopResponse = 0x1021
    SandboxRemoveResponse = 0x1022
    SandboxInspectResponse = 0x1023
    SandboxListResponse = 0x1024
    SandboxPortForwardResponse = 0x1025
    SandboxPortForwardRemoveResponse = 0x1026
    PortBindingsChanged = 0x1030
    PortBindingsRemoved = 0x1031
    SandboxRunOutput = 0x1035
    SandboxExecOutput = 0x1036
    SandboxEvent = 0x1037
    SandboxFileData = 0x1038
    SandboxFileWriteResponse = 0x1039
    StatFileResponse = 0x103A
    ListDirResponse = 0x103B
    MakeDirResponse = 0x103C
    RemoveEntryResponse = 0x103D
    MoveEntryResponse = 0x103E
    WatchDirEvent = 0x103F
    SandboxCheckpointResponse = 0x1040
    SandboxRestoreResponse = 0x1041
    SandboxListSnapshotsResponse = 0x1042
    SandboxDeleteSnapshotResponse = 0x1043
    PauseSandboxResponse = 0x1044
    ResumeSandboxResponse = 0x1045
    SetLifecycleResponse = 0x1046
    WatchDirEnd = 0x1047
    MachineExecOutput = 0x1050
    StartExecutionResponse = 0x1060
    ExecutionEvent = 0x1061
    StdinStatus = 0x1062
    SignalExecutionResponse = 0x1064
    ResizeExecutionTtyResponse = 0x1065
    WaitExecutionResponse = 0x1066
    ListExecutionsResponse = 0x1067
    WaitForPortResponse = 0x1068
    WatchPortBindingsResponse = 0x1F01
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

    end: MessageType | None = None
    """The type of the empty frame that ends the stream where its replies don't say themselves which is the last."""


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
    _T.WatchReadinessRequest: arcbox_v1.WatchReadinessRequest,
    _T.ReadinessEvent: arcbox_v1.ReadinessEvent,
    _T.WatchMemoryPressureRequest: arcbox_v1.WatchMemoryPressureRequest,
    _T.MemoryPressureEvent: arcbox_v1.MemoryPressureEvent,
    _T.WatchStatsRequest: arcbox_v1.WatchStatsRequest,
    _T.MachineStats: arcbox_v1.MachineStats,
    _T.MachineExecRequest: arcbox_v1.MachineExecRequest,
    _T.MachineExecResize: arcbox_v1.TerminalSize,
    _T.MachineExecOutput: arcbox_v1.MachineExecOutput,
    _T.SandboxCreateRequest: sandbox_v1.CreateSandboxRequest,
    _T.SandboxCreateResponse: sandbox_v1.CreateSandboxResponse,
    _T.SandboxStopRequest: sandbox_v1.StopSandboxRequest,
    _T.SandboxRemoveRequest: sandbox_v1.RemoveSandboxRequest,
    _T.SandboxInspectRequest: sandbox_v1.InspectSandboxRequest,
    _T.SandboxInspectResponse: sandbox_v1.SandboxInfo,
    _T.SandboxListRequest: sandbox_v1.ListSandboxesRequest,
    _T.SandboxListResponse: sandbox_v1.ListSandboxesResponse,
    _T.SandboxPortForwardRequest: sandbox_v1.SandboxPortForwardRequest,
    _T.SandboxPortForwardResponse: sandbox_v1.SandboxPortForwardResponse,
    _T.SandboxPortForwardRemoveRequest: sandbox_v1.SandboxPortForwardRemoveRequest,
    _T.SandboxRunRequest: sandbox_v1.RunRequest,
    _T.SandboxRunOutput: sandbox_v1.RunOutput,
    _T.SandboxExecRequest: sandbox_v1.ExecRequest,
    _T.SandboxExecOutput: sandbox_v1.ExecOutput,
    _T.SandboxEventsRequest: sandbox_v1.SandboxEventsRequest,
    _T.SandboxEvent: sandbox_v1.SandboxEvent,
    _T.SandboxExecResize: sandbox_v1.TerminalSize,
    _T.SandboxFileReadRequest: sandbox_v1.ReadFileRequest,
    _T.SandboxFileData: sandbox_v1.FileChunk,
    _T.SandboxFileWriteRequest: sandbox_v1.WriteFileOpen,
    _T.SandboxFileChunk: sandbox_v1.FileChunk,
    _T.SandboxCheckpointRequest: sandbox_v1.CheckpointRequest,
    _T.SandboxCheckpointResponse: sandbox_v1.CheckpointResponse,
    _T.SandboxRestoreRequest: sandbox_v1.RestoreRequest,
    _T.SandboxRestoreResponse: sandbox_v1.RestoreResponse,
    _T.SandboxListSnapshotsRequest: sandbox_v1.ListSnapshotsRequest,
    _T.SandboxListSnapshotsResponse: sandbox_v1.ListSnapshotsResponse,
    _T.SandboxDeleteSnapshotRequest: sandbox_v1.DeleteSnapshotRequest,
    _T.StatFileRequest: arcbox_sandbox_v1.StatFileRequest,
    _T.StatFileResponse: arcbox_sandbox_v1.FileStat,
    _T.ListDirRequest: arcbox_sandbox_v1.ListDirRequest,
    _T.ListDirResponse: arcbox_sandbox_v1.ListDirResponse,
    _T.MakeDirRequest: arcbox_sandbox_v1.MakeDirRequest,
    _T.RemoveEntryRequest: arcbox_sandbox_v1.RemoveEntryRequest,
    _T.MoveEntryRequest: arcbox_sandbox_v1.MoveEntryRequest,
    _T.WatchDirRequest: arcbox_sandbox_v1.WatchDirRequest,
    _T.WatchDirEvent: arcbox_sandbox_v1.WatchDirResponse,
    _T.PauseSandboxRequest: arcbox_sandbox_v1.PauseSandboxRequest,
    _T.ResumeSandboxRequest: arcbox_sandbox_v1.SandboxResumeCommand,
    _T.ResumeSandboxResponse: arcbox_sandbox_v1.SandboxResumeResponse,
    _T.SetLifecycleRequest: arcbox_sandbox_v1.SetLifecycleRequest,
    _T.StartExecutionRequest: arcbox_sandbox_v1.StartExecutionRequest,
    _T.StartExecutionResponse: arcbox_sandbox_v1.Execution,
    _T.AttachExecutionRequest: arcbox_sandbox_v1.AttachExecutionRequest,
    _T.ExecutionEvent: arcbox_sandbox_v1.ExecutionEvent,
    _T.WriteStdinRequest: arcbox_sandbox_v1.WriteStdinRequest,
    _T.StdinStatus: arcbox_sandbox_v1.StdinStatus,
    _T.GetStdinStatusRequest: arcbox_sandbox_v1.GetStdinStatusRequest,
    _T.SignalExecutionRequest: arcbox_sandbox_v1.SignalExecutionRequest,
    _T.ResizeExecutionTtyRequest: arcbox_sandbox_v1.ResizeExecutionTtyRequest,
    _T.WaitExecutionRequest: arcbox_sandbox_v1.WaitExecutionRequest,
    _T.WaitExecutionResponse: arcbox_sandbox_v1.Execution,
    _T.ListExecutionsRequest: arcbox_sandbox_v1.ListExecutionsRequest,
    _T.ListExecutionsResponse: arcbox_sandbox_v1.ListExecutionsResponse,
    _T.WaitForPortRequest: arcbox_sandbox_v1.WaitForPortRequest,
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
    _T.WatchReadinessRequest: _T.ReadinessEvent,
    _T.KillAgentRequest: _T.KillAgentResponse,
    _T.WatchPortBindingsRequest: _T.WatchPortBindingsResponse,
    _T.WatchMemoryPressureRequest: _T.MemoryPressureEvent,
    _T.WatchStatsRequest: _T.MachineStats,
    _T.SandboxCreateRequest: _T.SandboxCreateResponse,
    _T.SandboxStopRequest: _T.SandboxStopResponse,
    _T.SandboxRemoveRequest: _T.SandboxRemoveResponse,
    _T.SandboxInspectRequest: _T.SandboxInspectResponse,
    _T.SandboxListRequest: _T.SandboxListResponse,
    _T.SandboxPortForwardRequest: _T.SandboxPortForwardResponse,
    _T.SandboxPortForwardRemoveRequest: _T.SandboxPortForwardRemoveResponse,
    _T.SandboxRunRequest: _T.SandboxRunOutput,
    _T.SandboxExecRequest: _T.SandboxExecOutput,
    _T.SandboxEventsRequest: _T.SandboxEvent,
    _T.SandboxExecInput: None,
    _T.SandboxExecResize: None,
    _T.SandboxFileReadRequest: _T.SandboxFileData,
    _T.SandboxFileWriteRequest: _T.SandboxFileWriteResponse,
    _T.SandboxFileChunk: None,
    _T.StatFileRequest: _T.StatFileResponse,
    _T.ListDirRequest: _T.ListDirResponse,
    _T.MakeDirRequest: _T.MakeDirResponse,
    _T.RemoveEntryRequest: _T.RemoveEntryResponse,
    _T.MoveEntryRequest: _T.MoveEntryResponse,
    _T.WatchDirRequest: _T.WatchDirEvent,
    _T.SandboxCheckpointRequest: _T.SandboxCheckpointResponse,
    _T.SandboxRestoreRequest: _T.SandboxRestoreResponse,
    _T.SandboxListSnapshotsRequest: _T.SandboxListSnapshotsResponse,
    _T.SandboxDeleteSnapshotRequest: _T.SandboxDeleteSnapshotResponse,
    _T.PauseSandboxRequest: _T.PauseSandboxResponse,
    _T.ResumeSandboxRequest: _T.ResumeSandboxResponse,
    _T.SetLifecycleRequest: _T.SetLifecycleResponse,
    _T.MachineExecRequest: _T.MachineExecOutput,
    _T.MachineExecInput: None,
    _T.MachineExecResize: None,
    _T.StartExecutionRequest: _T.StartExecutionResponse,
    _T.AttachExecutionRequest: _T.ExecutionEvent,
    _T.WriteStdinRequest: _T.StdinStatus,
    _T.GetStdinStatusRequest: _T.StdinStatus,
    _T.SignalExecutionRequest: _T.SignalExecutionResponse,
    _T.ResizeExecutionTtyRequest: _T.ResizeExecutionTtyResponse,
    _T.WaitExecutionRequest: _T.WaitExecutionResponse,
    _T.ListExecutionsRequest: _T.ListExecutionsResponse,
    _T.WaitForPortRequest: _T.WaitForPortResponse,
}

_STREAMS = frozenset(
    {
        _T.WatchReadinessRequest,
        _T.WatchPortBindingsRequest,
        _T.WatchMemoryPressureRequest,
        _T.WatchStatsRequest,
        _T.SandboxRunRequest,
        _T.SandboxExecRequest,
        _T.SandboxEventsRequest,
        _T.SandboxFileReadRequest,
        _T.WatchDirRequest,
        _T.MachineExecRequest,
        _T.AttachExecutionRequest,
    }
)

_ENDS = {_T.WatchDirRequest: _T.WatchDirEnd}

EXCHANGES: Final[Mapping[int, Exchange]] = MappingProxyType(
    {
        request: Exchange(
            request,
            _MESSAGES.get(request),
            reply,
            None if reply is None else _MESSAGES.get(reply),
            streams=request in _STREAMS,
            end=_ENDS.get(request),
        )
        for request, reply in _REPLIES.items()
    }
)
"""Every request of the protocol, by its type."""

NOTIFICATIONS: Final[Mapping[int, type[Message]]] = MappingProxyType(
    {notification: _MESSAGES[notification] for notification in (_T.PortBindingsChanged, _T.PortBindingsRemoved)}
)
"""What the agent says without having been asked, by its type."""

LATER_REQUESTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x0011: "ContainerFsPathsRequest",
        0x0012: "ImageFsPathsRequest",
        0x0013: "EnsureNfsExportRequest",
        0x0027: "SandboxCleanupPrepareRequest",
        0x0028: "SandboxCleanupFinalizeRequest",
        0x0029: "WatchSandboxCleanupRequest",
        0x0070: "SandboxTemplateBuildRequest",
        0x0071: "SandboxTemplatePublishRequest",
        0x0072: "SandboxTemplateGetRequest",
        0x0073: "SandboxTemplateListRequest",
        0x0074: "SandboxTemplateDeleteRequest",
        0x0080: "MachineExecSignal",
        0x0081: "MachineExecOutputWindow",
        0x0090: "KubernetesLoadBalancersRequest",
    }
)
"""Requests of hosts from 0.5 on that this agent has no messages for, by their type: they are refused by name."""


def describe_type(message_type: int) -> str:
    """A message type as people read it: its number, and its name where it has one."""
    try:
        name = MessageType(message_type).name
    except ValueError:
        name = LATER_REQUESTS.get(message_type, "")
    return f"0x{message_type:04X} ({name})" if name else f"0x{message_type:04X}"
