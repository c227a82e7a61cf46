"""The requests about the machine: ping, system, power, files, disks, container runtime, Kubernetes."""

from __future__ import annotations

from attrs import frozen

from arcbox_client._requests import Requests, check_reply, parse_file_reply
from arcbox_client.errors import RequestFailedError, file_read_failed
from arcbox_protocol import MessageType, arcbox_v1

MAX_READ = 64 * 1024 * 1024
"""Bytes that one `mmap_read_file` can ask for."""


@frozen(eq=False, kw_only=True)
class MachineRequests(Requests):
    """What can be asked of the machine, besides its sandboxes."""

    async def ping(self, message: str = "", *, timestamp_secs: int = 0) -> arcbox_v1.AgentPingResponse:
        """Ask for a sign of life: `pong`, or `pong: <message>`, and the agent's version.

        Args:
            message: what to send back.
            timestamp_secs: the host's clock, Unix seconds. **Above 0 it sets the guest's clock** when that is off by a
                second or more.
        """
        request = arcbox_v1.AgentPingRequest(message=message, timestamp_secs=timestamp_secs)
        return await self._call(MessageType.PingRequest, request, arcbox_v1.AgentPingResponse)

    async def system_info(self) -> arcbox_v1.SystemInfo:
        """Kernel, distribution, memory, load, addresses. What the guest can't find out is zero or empty."""
        return await self._call(MessageType.GetSystemInfoRequest, None, arcbox_v1.SystemInfo)

    async def shutdown(self, *, timeout_seconds: int = 0) -> arcbox_v1.ShutdownResponse:
        """Power the guest off. Returns when the agent has accepted, before anything stops.

        Args:
            timeout_seconds: how long sandboxes and services have for ending by themselves; 0 is the agent's 25.

        Raises:
            NotSupportedError: this agent does not switch anything off.
        """
        request = arcbox_v1.ShutdownRequest(timeout_seconds=timeout_seconds)
        return await self._call(MessageType.ShutdownRequest, request, arcbox_v1.ShutdownResponse)

    async def mmap_read_file(self, path: str, *, offset: int = 0, length: int = MAX_READ) -> bytes:
        """Read `length` bytes of a file of the guest, from `offset`; fewer where the file ends before that.

        Args:
            path: the file, absolute.
            offset: bytes from its start.
            length: bytes, at most 64 MiB.

        Raises:
            FileReadError: the guest's operating system says no; an `OSError`, with its errno.
        """
        request = arcbox_v1.MmapReadFileRequest(path=path, offset=offset, length=length)
        frame = await self._exchange(MessageType.MmapReadFileRequest, request)
        try:
            check_reply(frame, MessageType.MmapReadFileRequest)
        except RequestFailedError as error:
            raise file_read_failed(error, path) from None
        return parse_file_reply(frame.payload)

    async def disk_trim(self) -> arcbox_v1.DiskTrimResponse:
        """Give unused blocks of the guest's data volumes back to the host. Slow."""
        request = arcbox_v1.DiskTrimRequest()
        return await self._call(MessageType.DiskTrimRequest, request, arcbox_v1.DiskTrimResponse, slow=True)

    async def ensure_runtime(self, *, start_if_needed: bool = True) -> arcbox_v1.RuntimeEnsureResponse:
        """Start the container runtime, or with `start_if_needed` False only ask after it.

        Does not wait: the status is `starting` until it is `reused` or `failed`. Ask again.
        """
        request = arcbox_v1.RuntimeEnsureRequest(start_if_needed=start_if_needed)
        return await self._call(MessageType.EnsureRuntimeRequest, request, arcbox_v1.RuntimeEnsureResponse)

    async def runtime_status(self) -> arcbox_v1.RuntimeStatusResponse:
        """What of the container runtime answers now."""
        request = arcbox_v1.RuntimeStatusRequest()
        return await self._call(MessageType.RuntimeStatusRequest, request, arcbox_v1.RuntimeStatusResponse)

    async def kubernetes_start(self) -> arcbox_v1.KubernetesStartResponse:
        """Start Kubernetes, and wait up to 30 s for its API. Slow."""
        request = arcbox_v1.KubernetesStartRequest()
        return await self._call(
            MessageType.KubernetesStartRequest, request, arcbox_v1.KubernetesStartResponse, slow=True
        )

    async def kubernetes_stop(self) -> arcbox_v1.KubernetesStopResponse:
        """Stop Kubernetes, and wait until it has. Slow."""
        request = arcbox_v1.KubernetesStopRequest()
        return await self._call(MessageType.KubernetesStopRequest, request, arcbox_v1.KubernetesStopResponse, slow=True)

    async def kubernetes_delete(self) -> arcbox_v1.KubernetesDeleteResponse:
        """Stop Kubernetes and remove all its state. Slow."""
        request = arcbox_v1.KubernetesDeleteRequest()
        return await self._call(
            MessageType.KubernetesDeleteRequest, request, arcbox_v1.KubernetesDeleteResponse, slow=True
        )

    async def kubernetes_status(self) -> arcbox_v1.KubernetesStatusResponse:
        """Whether Kubernetes runs, and whether its API answers."""
        request = arcbox_v1.KubernetesStatusRequest()
        return await self._call(MessageType.KubernetesStatusRequest, request, arcbox_v1.KubernetesStatusResponse)

    async def kubernetes_kubeconfig(self) -> arcbox_v1.KubernetesKubeconfigResponse:
        """The kubeconfig, as it is in the guest. Raises `NotFoundError` where there is none."""
        request = arcbox_v1.KubernetesKubeconfigRequest()
        return await self._call(
            MessageType.KubernetesKubeconfigRequest, request, arcbox_v1.KubernetesKubeconfigResponse
        )
