"""EnsureRuntime, RuntimeStatus, WatchReadiness, WatchPortBindings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, frozen

from arcbox_guest.runtime.runtime import Phase
from arcbox_handlers._command import StreamCommand, UnaryCommand
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_guest.runtime.containers import Bindings
    from arcbox_guest.runtime.runtime import RuntimeState, ServiceState
    from arcbox_handlers._command import Context, ReplyStream

_READY_WITHIN: Final = 125.0
"""Seconds that a WatchReadiness without a timeout waits: containerd's 30 and dockerd's 90, and what is before them."""

_Event = arcbox_v1.ReadinessEvent


@frozen
class EnsureRuntime(UnaryCommand[arcbox_v1.RuntimeEnsureRequest]):
    """Has the container runtime started, and says how far that is. Does not wait for it."""

    handles = MessageType.EnsureRuntimeRequest

    async def __call__(self, context: Context) -> arcbox_v1.RuntimeEnsureResponse:
        runtime, start = context.guest.runtime, self.request.start_if_needed
        state = await runtime.ensure(start=start)
        if state.phase is Phase.READY:
            status = "reused"
        elif state.phase is Phase.STARTING and start:
            status = "starting"
        else:
            status = "failed"
        return arcbox_v1.RuntimeEnsureResponse(
            ready=state.phase is Phase.READY,
            endpoint=runtime.config.endpoint,
            message=state.detail or state.phase.value,
            status=status,
        )


@frozen
class RuntimeStatus(UnaryCommand[arcbox_v1.RuntimeStatusRequest]):
    """What of the container runtime answers now."""

    handles = MessageType.RuntimeStatusRequest

    async def __call__(self, context: Context) -> arcbox_v1.RuntimeStatusResponse:
        runtime = context.guest.runtime
        state = await runtime.state()
        return arcbox_v1.RuntimeStatusResponse(
            containerd_ready=state.containerd.ready,
            docker_ready=state.dockerd.ready,
            endpoint=runtime.config.endpoint,
            detail=state.detail or state.phase.value,
            services=_services(state),
        )


@frozen
class WatchReadiness(StreamCommand[arcbox_v1.WatchReadinessRequest]):
    """Says that the agent is ready, and when the container runtime is."""

    handles = MessageType.WatchReadinessRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        await stream.send(_Event(kind=_Event.AGENT_READY))
        if not self.request.start_runtime_if_needed:
            return
        endpoint = context.guest.runtime.config.endpoint
        await stream.send(_Event(kind=_Event.RUNTIME_STARTING, endpoint=endpoint))
        timeout = self.request.timeout_ms / 1000 or _READY_WITHIN
        state = None
        with trio.move_on_after(timeout):
            state = await context.guest.runtime.start()
        if state is None:
            state = await context.guest.runtime.state()
            detail = f"not ready within {timeout:g} s: {state.detail or state.phase.value}"
        else:
            detail = state.detail
        kind = _Event.RUNTIME_READY if state.phase is Phase.READY else _Event.RUNTIME_FAILED
        await stream.send(_Event(kind=kind, endpoint=endpoint, detail=detail, services=_services(state)))


@frozen
class WatchPortBindings(StreamCommand[None]):
    """From now on the connection is told which ports of the guest lead to containers, in frames without a trace id.

    An empty reply says that this has begun. No stock host asks for it: those that do not know the frames never see any.
    """

    handles = MessageType.WatchPortBindingsRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        async def tell(container_id: str, bindings: Bindings) -> None:
            if bindings:
                described = [arcbox_v1.PortBinding(**asdict(binding)) for binding in bindings]
                changed = arcbox_v1.PortBindingsChanged(container_id=container_id, bindings=described)
                await stream.notify(MessageType.PortBindingsChanged, changed)
            else:
                removed = arcbox_v1.PortBindingsRemoved(container_id=container_id)
                await stream.notify(MessageType.PortBindingsRemoved, removed)

        await stream.send_payload()
        await context.guest.runtime.containers.tell_bindings(tell)


def _services(state: RuntimeState) -> list[arcbox_v1.ServiceStatus]:
    return [service_status(service) for service in (state.containerd, state.dockerd)]


def service_status(service: ServiceState) -> arcbox_v1.ServiceStatus:
    """One daemon, as the wire has it."""
    return arcbox_v1.ServiceStatus(name=service.name, status=_status(service), detail=service.detail)


def _status(service: ServiceState) -> str:
    if service.failed:
        return "error"
    return "ready" if service.ready else "not_ready"
