"""The other end: `AgentClient` for programs and harnesses, the `arcboxctl` command, the pytest plugin.

All that a program needs is here, errors and the messages of replies included. A name is imported when it is first used:
pytest loads the plugin of this package at every start, and a project that does not talk to an agent should not pay for
Trio and protobuf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arcbox_client._file_requests import FileChange, FileInfo, FileReader, FileWatch
    from arcbox_client._machine_requests import MachineExecOptions
    from arcbox_client._sandbox_requests import ExecOptions, Mount, ProcessOptions, SandboxOptions
    from arcbox_client.addresses import Address, UnixAddress, VsockAddress, parse_address
    from arcbox_client.client import AgentClient, connect
    from arcbox_client.errors import (
        AgentError,
        BadRequestError,
        ConflictError,
        ConnectError,
        ConnectionLostError,
        ConnectTimedOutError,
        FileReadError,
        GuestTimedOutError,
        HandshakeError,
        InternalError,
        InvalidAddressError,
        NotFoundError,
        NotificationsMissedError,
        NotSupportedError,
        OutOfRangeError,
        PausedError,
        PreconditionFailedError,
        ProtocolViolationError,
        RequestFailedError,
        SandboxFailedError,
        TimedOutError,
        TooLargeError,
        UnavailableError,
    )
    from arcbox_client.executions import Attachment, ExecutionHandle, ExecutionOutput, Exited
    from arcbox_client.handles import SandboxFiles, SandboxHandle
    from arcbox_client.streams import (
        Completed,
        ExecSession,
        KillReason,
        MessageStream,
        Notifications,
        OutputChunk,
        RunSession,
    )
    from arcbox_protocol import MessageType, __version__
    from arcbox_protocol.errors import ErrorCode
    from arcbox_protocol.proto.arcbox_sandbox_v1_pb2 import (
        Execution,
        ExecutionEvent,
        SandboxResumeResponse,
        StdinStatus,
    )
    from arcbox_protocol.proto.arcbox_v1_pb2 import (
        AgentPingResponse,
        ContainerStats,
        DiskTrimResponse,
        KubernetesDeleteResponse,
        KubernetesKubeconfigResponse,
        KubernetesStartResponse,
        KubernetesStatusResponse,
        KubernetesStopResponse,
        MachineStats,
        MemoryPressureEvent,
        PortBinding,
        PortBindingsChanged,
        PortBindingsRemoved,
        ReadinessEvent,
        RuntimeEnsureResponse,
        RuntimeStatusResponse,
        ServiceStatus,
        ShutdownResponse,
        SystemInfo,
    )
    from arcbox_protocol.proto.sandbox_v1_pb2 import (
        CheckpointResponse,
        CreateSandboxResponse,
        ListSandboxesResponse,
        ListSnapshotsResponse,
        ResourceLimits,
        RestoreResponse,
        SandboxEvent,
        SandboxInfo,
        SandboxNetwork,
        SandboxSummary,
        SnapshotSummary,
    )

_MODULES = (
    "arcbox_client.addresses",
    "arcbox_client.client",
    "arcbox_client.errors",
    "arcbox_client._sandbox_requests",
    "arcbox_client._file_requests",
    "arcbox_client._machine_requests",
    "arcbox_client.executions",
    "arcbox_client.handles",
    "arcbox_client.streams",
    "arcbox_protocol",
    "arcbox_protocol.errors",
    "arcbox_protocol.proto.arcbox_v1_pb2",
    "arcbox_protocol.proto.sandbox_v1_pb2",
    "arcbox_protocol.proto.arcbox_sandbox_v1_pb2",
)

__all__ = [
    "Address",
    "AgentClient",
    "AgentError",
    "AgentPingResponse",
    "Attachment",
    "BadRequestError",
    "CheckpointResponse",
    "Completed",
    "ConflictError",
    "ConnectError",
    "ConnectTimedOutError",
    "ConnectionLostError",
    "ContainerStats",
    "CreateSandboxResponse",
    "DiskTrimResponse",
    "ErrorCode",
    "ExecOptions",
    "ExecSession",
    "Execution",
    "ExecutionEvent",
    "ExecutionHandle",
    "ExecutionOutput",
    "Exited",
    "FileChange",
    "FileInfo",
    "FileReadError",
    "FileReader",
    "FileWatch",
    "GuestTimedOutError",
    "HandshakeError",
    "InternalError",
    "InvalidAddressError",
    "KillReason",
    "KubernetesDeleteResponse",
    "KubernetesKubeconfigResponse",
    "KubernetesStartResponse",
    "KubernetesStatusResponse",
    "KubernetesStopResponse",
    "ListSandboxesResponse",
    "ListSnapshotsResponse",
    "MachineExecOptions",
    "MachineStats",
    "MemoryPressureEvent",
    "MessageStream",
    "MessageType",
    "Mount",
    "NotFoundError",
    "NotSupportedError",
    "Notifications",
    "NotificationsMissedError",
    "OutOfRangeError",
    "OutputChunk",
    "PausedError",
    "PortBinding",
    "PortBindingsChanged",
    "PortBindingsRemoved",
    "PreconditionFailedError",
    "ProcessOptions",
    "ProtocolViolationError",
    "ReadinessEvent",
    "RequestFailedError",
    "ResourceLimits",
    "RestoreResponse",
    "RunSession",
    "RuntimeEnsureResponse",
    "RuntimeStatusResponse",
    "SandboxEvent",
    "SandboxFailedError",
    "SandboxFiles",
    "SandboxHandle",
    "SandboxInfo",
    "SandboxNetwork",
    "SandboxOptions",
    "SandboxResumeResponse",
    "SandboxSummary",
    "ServiceStatus",
    "ShutdownResponse",
    "SnapshotSummary",
    "StdinStatus",
    "SystemInfo",
    "TimedOutError",
    "TooLargeError",
    "UnavailableError",
    "UnixAddress",
    "VsockAddress",
    "__version__",
    "connect",
    "parse_address",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in map(import_module, _MODULES):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
