"""KubernetesStart, Stop, Delete, Status and Kubeconfig."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_guest.kubernetes.kubernetes import CONTEXT
from arcbox_handlers._command import UnaryCommand
from arcbox_handlers.runtime import service_status
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_guest.kubernetes.kubernetes import KubernetesState
    from arcbox_handlers._command import Context


@frozen
class KubernetesStart(UnaryCommand[arcbox_v1.KubernetesStartRequest]):
    """Has k3s running, and waits up to 30 s for its API. What prevents it is told in the detail."""

    handles = MessageType.KubernetesStartRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_v1.KubernetesStartResponse:
        kubernetes = context.guest.kubernetes
        state = await kubernetes.start()
        return arcbox_v1.KubernetesStartResponse(
            running=state.running,
            api_ready=state.api_ready,
            endpoint=kubernetes.config.endpoint,
            detail=state.detail,
        )


@frozen
class KubernetesStop(UnaryCommand[arcbox_v1.KubernetesStopRequest]):
    """Ends k3s. One that does not run is a success as well."""

    handles = MessageType.KubernetesStopRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_v1.KubernetesStopResponse:
        return arcbox_v1.KubernetesStopResponse(stopped=True, detail=await context.guest.kubernetes.stop())


@frozen
class KubernetesDelete(UnaryCommand[arcbox_v1.KubernetesDeleteRequest]):
    """Ends k3s, and removes all that it has left on the machine."""

    handles = MessageType.KubernetesDeleteRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_v1.KubernetesDeleteResponse:
        return arcbox_v1.KubernetesDeleteResponse(detail=await context.guest.kubernetes.delete())


@frozen
class KubernetesStatus(UnaryCommand[arcbox_v1.KubernetesStatusRequest]):
    """What of Kubernetes answers now."""

    handles = MessageType.KubernetesStatusRequest

    async def __call__(self, context: Context) -> arcbox_v1.KubernetesStatusResponse:
        kubernetes = context.guest.kubernetes
        state = await kubernetes.state()
        return arcbox_v1.KubernetesStatusResponse(
            running=state.running,
            api_ready=state.api_ready,
            endpoint=kubernetes.config.endpoint,
            detail=state.detail,
            services=[service_status(state.containerd), _k3s(state)],
        )


@frozen
class KubernetesKubeconfig(UnaryCommand[arcbox_v1.KubernetesKubeconfigRequest]):
    """The kubeconfig that k3s has written."""

    handles = MessageType.KubernetesKubeconfigRequest

    async def __call__(self, context: Context) -> arcbox_v1.KubernetesKubeconfigResponse:
        kubernetes = context.guest.kubernetes
        return arcbox_v1.KubernetesKubeconfigResponse(
            kubeconfig=await kubernetes.kubeconfig(), context_name=CONTEXT, endpoint=kubernetes.config.endpoint
        )


def _k3s(state: KubernetesState) -> arcbox_v1.ServiceStatus:
    status = "ready" if state.api_ready else "error" if state.failed else "not_ready"
    return arcbox_v1.ServiceStatus(name="k3s", status=status, detail=state.detail)
