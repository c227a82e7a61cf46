"""SandboxCreate, Stop, Remove, Inspect and List."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.network.addresses import Lease
from arcbox_guest.sandboxes.model import State
from arcbox_handlers import _sandbox_specs
from arcbox_handlers._command import UnaryCommand
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.model import Sandbox
    from arcbox_handlers._command import Context

_DEFAULT_GRACE = 30
"""Seconds that a sandbox has to stop, for a request that says 0."""


@frozen
class SandboxCreate(UnaryCommand[sandbox_v1.CreateSandboxRequest]):
    """Begins a sandbox. Whether it gets ready, its events tell."""

    handles = MessageType.SandboxCreateRequest

    async def __call__(self, context: Context) -> sandbox_v1.CreateSandboxResponse:
        sandbox = await context.guest.sandboxes.create(_sandbox_specs.spec(self.request))
        return sandbox_v1.CreateSandboxResponse(id=sandbox.id, ip_address=sandbox.ip_address, state=sandbox.state)


@frozen
class SandboxStop(UnaryCommand[sandbox_v1.StopSandboxRequest]):
    """Asks what runs in a sandbox to end, and after a while makes it."""

    handles = MessageType.SandboxStopRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        grace = float(self.request.timeout_seconds or _DEFAULT_GRACE)
        await context.guest.sandboxes.stop(self.request.id, grace)


@frozen
class SandboxRemove(UnaryCommand[sandbox_v1.RemoveSandboxRequest]):
    """Removes a sandbox, and all that belongs to it."""

    handles = MessageType.SandboxRemoveRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        await context.guest.sandboxes.remove(self.request.id, force=self.request.force)


@frozen
class SandboxInspect(UnaryCommand[sandbox_v1.InspectSandboxRequest]):
    """All that is known of a sandbox."""

    handles = MessageType.SandboxInspectRequest

    async def __call__(self, context: Context) -> sandbox_v1.SandboxInfo:
        manager = context.guest.sandboxes
        await manager.opened()
        return _info(manager.get(self.request.id))


@frozen
class SandboxList(UnaryCommand[sandbox_v1.ListSandboxesRequest]):
    """The sandboxes in a state, with some labels."""

    handles = MessageType.SandboxListRequest

    async def __call__(self, context: Context) -> sandbox_v1.ListSandboxesResponse:
        state = _state(self.request.state)
        manager = context.guest.sandboxes
        await manager.opened()
        sandboxes = manager.list(state, dict(self.request.labels))
        return sandbox_v1.ListSandboxesResponse(sandboxes=map(_summary, sandboxes))


def _state(name: str) -> State | None:
    try:
        return State(name) if name else None
    except ValueError:
        raise InvalidArgumentError(f"{name[:80]!r} is no state: there are {', '.join(State)}") from None


def _info(sandbox: Sandbox) -> sandbox_v1.SandboxInfo:
    limits = sandbox.spec.limits
    return sandbox_v1.SandboxInfo(
        id=sandbox.id,
        state=sandbox.state,
        labels=sandbox.spec.labels,
        limits=sandbox_v1.ResourceLimits(vcpus=limits.vcpus, memory_mib=limits.memory_mib),
        network=_network(sandbox),
        created_at=int(sandbox.created_at),
        ready_at=int(sandbox.ready_at),
        last_exited_at=int(sandbox.last_exited_at),
        last_exit_code=sandbox.last_exit_code,
        error=sandbox.error or sandbox.last_error,
    )


def _summary(sandbox: Sandbox) -> sandbox_v1.SandboxSummary:
    return sandbox_v1.SandboxSummary(
        id=sandbox.id,
        state=sandbox.state,
        labels=sandbox.spec.labels,
        ip_address=sandbox.ip_address,
        created_at=int(sandbox.created_at),
    )


def _network(sandbox: Sandbox) -> sandbox_v1.SandboxNetwork:
    if not sandbox.spec.lease:
        return sandbox_v1.SandboxNetwork()
    lease = Lease.parse(sandbox.spec.lease)
    return sandbox_v1.SandboxNetwork(ip_address=str(lease.address), gateway=str(lease.gateway), tap_name=lease.link)
