"""What sandboxes are made of: what a caller asks for, and what a record keeps."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import Factory, field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping


MOST_VCPUS: Final = 8192
"""More than any Linux can have: CONFIG_NR_CPUS."""

MOST_MEMORY_MIB: Final = 2**43 - 1
"""Runtimes take bytes in a signed number of 64 bits."""

MOST_PROCESSES: Final = 2**22
"""PID_MAX_LIMIT in linux/threads.h: a cgroup takes no more."""


class State(StrEnum):
    """Where a sandbox is in its life; the names are those of the wire."""

    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Action(StrEnum):
    """What happened to a sandbox; the names are those of the wire."""

    CREATED = "created"
    READY = "ready"
    RUNNING = "running"
    IDLE = "idle"
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    REMOVED = "removed"


class NetworkMode(StrEnum):
    """The names are those of the wire."""

    UNSET = ""
    """`TAP` where the guest has a network for sandboxes, else `NONE`."""

    TAP = "tap"
    """An address of the sandboxes' network, from which all others can be reached."""

    NONE = "none"
    """Loopback only."""


class Reason(StrEnum):
    """Why a process was killed, or a sandbox with all that ran in it; the value of an event's attribute `reason`."""

    OUT_OF_MEMORY = "oom"
    TIMEOUT = "timeout"
    REMOVED = "removed"
    EXPIRED = "expired"
    IDLE = "idle"


class IdleAction(StrEnum):
    """What becomes of a sandbox that was idle for long enough."""

    KILL = "kill"
    """It is removed."""

    PAUSE = "pause"


@frozen
class TerminalSize:
    """In characters."""

    columns: int = 80
    rows: int = 24


@frozen(kw_only=True)
class ResourceLimits:
    """What a sandbox may use. 0 asks for the configured default."""

    vcpus: int = 0
    memory_mib: int = 0


@frozen(kw_only=True)
class BindMount:
    """A directory or file of the guest that is seen inside of a sandbox."""

    source: str
    """Absolute, in the guest."""

    target: str
    """Absolute, in the sandbox; symbolic links on the way there stay inside of its root."""

    readonly: bool = False


@frozen(kw_only=True)
class ExecSpec:
    """A process to run in a sandbox."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = Factory(dict)
    """Added to a sane default."""

    working_dir: str = ""
    """Empty for the sandbox's own, which is / unless it was created with another."""

    user: str = ""
    """A name or uid[:gid] of the sandbox's own passwd file; empty for the sandbox's own, which is root by default."""

    terminal: TerminalSize | None = None
    """The size of the terminal that it gets; None for pipes."""

    timeout: float = 0.0
    """Seconds until its whole process tree is killed; 0 is never."""


@frozen(kw_only=True)
class Spec:
    """What a sandbox shall be. What is empty was not asked for."""

    id: str
    rootfs: str = ""
    """A directory, or an image file of a file system; the configured one if empty."""

    image: str = ""
    """A reference to an OCI image, in place of `rootfs`, which then is the image's once that was had."""

    layers: tuple[str, ...] = ()
    """Of a snapshot, on top of the root file system, the uppermost first; as `Driver.checkpoint` has called them."""

    image_digest: str = ""
    """Of the image that the reference has led to."""

    labels: Mapping[str, str] = Factory(dict)
    limits: ResourceLimits = field(factory=ResourceLimits)
    cmd: tuple[str, ...] = ()
    """Runs once the sandbox is ready."""

    env: Mapping[str, str] = Factory(dict)
    """Of everything that runs in it, unless that has its own."""

    working_dir: str = ""
    user: str = ""
    mounts: tuple[BindMount, ...] = ()
    network: NetworkMode = NetworkMode.UNSET
    lease: str = ""
    """Its address with the length of the network's prefix, 172.20.0.2/16, which the manager gives it; or none."""

    ttl: float = 0.0
    """Seconds from its creation until it is removed by force; 0 is never."""


@frozen
class Forward:
    """A port of the guest that leads to a sandbox's."""

    port: int
    """The sandbox's."""

    transport: str
    """`TCP` or `UDP`."""

    guest_port: int


@frozen(kw_only=True)
class Sandbox:
    """What is known of a sandbox: its record. A change makes a new one (`attrs.evolve`)."""

    spec: Spec
    state: State
    created_at: float
    """Unix seconds, like the other times; 0 is not yet."""

    ready_at: float = 0.0
    last_exited_at: float = 0.0
    last_exit_code: int = 0
    last_error: str = ""
    """Why the process that ended last was killed, with the `Reason` as its first word, or why it could not be started;
    empty when it just ended."""

    error: str = ""
    """Why it failed, for people."""

    expires_at: float = 0.0
    """When it is removed by force; 0 is never."""

    idle_timeout: float = 0.0
    """Seconds for which it may be idle; 0 is for ever."""

    on_idle: IdleAction = IdleAction.KILL
    """What happens then."""

    forwards: tuple[Forward, ...] = ()
    """Ports that lead to it, for the next agent."""

    driver: str = ""
    """The name of the driver that made it."""

    facts: Mapping[str, str] = Factory(dict)
    """What that driver needs to go on with it after a restart of the agent; empty until it was made."""

    boot_id: str = ""
    """Of the run of the kernel in which the times were read."""

    clock_ahead: float = 0.0
    """Seconds by which CLOCK_REALTIME, which they are from, was ahead of CLOCK_BOOTTIME then: see `times`."""

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def ip_address(self) -> str:
        """Empty without a network."""
        return self.spec.lease.partition("/")[0]


@frozen(kw_only=True)
class Statistics:
    """What a sandbox uses now."""

    cpu_seconds: float
    """Of processor time, all its processes together, since it was created."""

    memory_bytes: int
    processes: int


SIGNALLED: Final = 128
"""Added to the number of the signal that killed a process, in place of an exit code."""
