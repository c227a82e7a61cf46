"""What a request does: one command class per request type, registered by message type."""

from __future__ import annotations

from . import executions
from ._command import (
    Acknowledgement,
    AnyCommand,
    Command,
    Context,
    FileReply,
    OpenFile,
    QuickCommand,
    Reply,
    ReplyStream,
    StreamCommand,
    UnaryCommand,
)
from ._errors import CommandError, error_reply
from ._registry import Registry, Route
from .disks import DiskTrim
from .files import MmapReadFile
from .kubernetes import (
    KubernetesDelete,
    KubernetesKubeconfig,
    KubernetesStart,
    KubernetesStatus,
    KubernetesStop,
)
from .machine import KillAgent, MachineExec, WatchMemoryPressure, WatchStats
from .power import Shutdown
from .runtime import EnsureRuntime, RuntimeStatus, WatchPortBindings, WatchReadiness
from .sandbox_files import (
    ListDir,
    MakeDir,
    MoveEntry,
    RemoveEntry,
    SandboxFileRead,
    SandboxFileWrite,
    StatFile,
    WatchDir,
)
from .sandbox_lifecycle import PauseSandbox, ResumeSandbox, SetLifecycle
from .sandbox_ports import SandboxPortForward, SandboxPortForwardRemove
from .sandbox_snapshots import SandboxCheckpoint, SandboxDeleteSnapshot, SandboxListSnapshots, SandboxRestore
from .sandbox_streams import SandboxEvents, SandboxExec, SandboxRun
from .sandboxes import SandboxCreate, SandboxInspect, SandboxList, SandboxRemove, SandboxStop
from .system import GetSystemInfo, Ping

__all__ = [
    "Acknowledgement",
    "AnyCommand",
    "Command",
    "CommandError",
    "Context",
    "FileReply",
    "OpenFile",
    "QuickCommand",
    "Registry",
    "Reply",
    "ReplyStream",
    "Route",
    "StreamCommand",
    "UnaryCommand",
    "default_registry",
    "error_reply",
]


def default_registry() -> Registry:
    """The commands of the agent as it is shipped."""
    return Registry(
        [
            Ping,
            GetSystemInfo,
            MmapReadFile,
            DiskTrim,
            Shutdown,
            KillAgent,
            WatchStats,
            WatchMemoryPressure,
            MachineExec,
            EnsureRuntime,
            RuntimeStatus,
            WatchReadiness,
            WatchPortBindings,
            KubernetesStart,
            KubernetesStop,
            KubernetesDelete,
            KubernetesStatus,
            KubernetesKubeconfig,
            SandboxCreate,
            SandboxStop,
            SandboxRemove,
            SandboxInspect,
            SandboxList,
            SandboxRun,
            SandboxExec,
            SandboxEvents,
            SandboxFileRead,
            SandboxFileWrite,
            StatFile,
            ListDir,
            MakeDir,
            RemoveEntry,
            MoveEntry,
            WatchDir,
            PauseSandbox,
            ResumeSandbox,
            SetLifecycle,
            SandboxPortForward,
            SandboxPortForwardRemove,
            SandboxCheckpoint,
            SandboxRestore,
            SandboxListSnapshots,
            SandboxDeleteSnapshot,
            *executions.COMMANDS,
        ]
    )
