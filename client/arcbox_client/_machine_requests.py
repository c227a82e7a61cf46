"""The requests about the machine: ping, system, power, files, disks, container runtime, Kubernetes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypedDict

import trio
from attrs import frozen

from arcbox_client._requests import Requests, arguments, check_reply, parse_file_reply
from arcbox_client.errors import RequestFailedError, file_read_failed
from arcbox_client.streams import ExecSession, MessageStream
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Unpack

MAX_READ = 64 * 1024 * 1024
"""Bytes that one `mmap_read_file` can ask for."""


class MachineExecOptions(TypedDict, total=False):
    """What `machine_exec` takes besides the command."""

    env: Mapping[str, str]
    working_dir: str
    user: str
    tty: bool
    tty_size: tuple[int, int]
    """Columns and rows; 80 by 24 where it is left out."""


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

    @asynccontextmanager
    async def watch_readiness(
        self,
        *,
        start_runtime_if_needed: bool = False,
        timeout: float = 120.0,  # noqa: ASYNC109  the guest keeps it
    ) -> AsyncIterator[MessageStream[arcbox_v1.ReadinessEvent]]:
        """`ensure_runtime` as a stream: AGENT_READY at once, then how the start of the runtime goes.

        Args:
            start_runtime_if_needed: whether to start the container runtime.
            timeout: seconds after which the start has failed.
        """
        request = arcbox_v1.WatchReadinessRequest(
            start_runtime_if_needed=start_runtime_if_needed, timeout_ms=_milliseconds(timeout)
        )
        kinds = arcbox_v1.ReadinessEvent
        last = {kinds.RUNTIME_READY, kinds.RUNTIME_FAILED} if start_runtime_if_needed else {kinds.AGENT_READY}
        async with self._stream(MessageType.WatchReadinessRequest, request, arcbox_v1.ReadinessEvent) as (
            replies,
            _,
            _,
        ):
            yield MessageStream(replies, lambda event: event.kind in last)

    @asynccontextmanager
    async def watch_stats(
        self, *, interval: float = 1.0, duration: float = 300.0
    ) -> AsyncIterator[MessageStream[arcbox_v1.MachineStats]]:
        """What the machine and the containers in it use, for `duration` seconds.

        There is a sample at once, then one every `interval` seconds, which is at least 0.2.
        """
        request = arcbox_v1.WatchStatsRequest(timeout_ms=_milliseconds(duration), interval_ms=_milliseconds(interval))
        async with self._stream(MessageType.WatchStatsRequest, request, arcbox_v1.MachineStats) as (replies, _, _):
            yield MessageStream(replies, deadline=trio.current_time() + duration)

    @asynccontextmanager
    async def watch_memory_pressure(
        self,
        *,
        min_available_bytes: int = 0,
        max_refault_rate: int = 0,
        psi_full_stall: float = 0.0,
        duration: float = 300.0,
        keepalive: float = 10.0,
    ) -> AsyncIterator[MessageStream[arcbox_v1.MemoryPressureEvent]]:
        """Signs that the guest runs out of memory, for `duration` seconds; a KEEPALIVE at once and after each pause.

        Args:
            min_available_bytes: report LOW_AVAILABLE below this; 0 is no such limit.
            max_refault_rate: report REFAULT_SPIKE above so many pages per second; 0 is no such limit.
            psi_full_stall: report stalls of all tasks of so many seconds within one second; 0 is no such limit.
            duration: seconds; the last event is WINDOW_ELAPSED.
            keepalive: seconds without an event after which there is a KEEPALIVE.
        """
        request = arcbox_v1.WatchMemoryPressureRequest(
            timeout_ms=_milliseconds(duration),
            min_available_bytes=min_available_bytes,
            max_refault_rate=max_refault_rate,
            keepalive_ms=_milliseconds(keepalive),
            psi_full_stall_us=round(psi_full_stall * 1e6),
        )
        elapsed = arcbox_v1.MemoryPressureEvent.WINDOW_ELAPSED
        event = arcbox_v1.MemoryPressureEvent
        async with self._stream(MessageType.WatchMemoryPressureRequest, request, event) as (replies, _, _):
            yield MessageStream(replies, lambda event: event.reason == elapsed)

    @asynccontextmanager
    async def machine_exec(
        self, cmd: Sequence[str], *, login: bool = False, stdin: bool = True, **options: Unpack[MachineExecOptions]
    ) -> AsyncIterator[ExecSession]:
        """Run a command in the guest itself, as root unless told otherwise; leaving the context kills its session.

        Raises:
            NotSupportedError: at the first read; the agent's settings do not allow it, as they do by default.
        """
        size = options.get("tty_size")
        request = arcbox_v1.MachineExecRequest(
            cmd=arguments(cmd),
            working_dir=options.get("working_dir"),
            user=options.get("user"),
            env=options.get("env"),
            tty=options.get("tty"),
            tty_size=None if size is None else arcbox_v1.TerminalSize(width=size[0], height=size[1]),
            attach_stdin=stdin,
            login=login,
        )
        async with self._stream(MessageType.MachineExecRequest, request, arcbox_v1.MachineExecOutput) as stream:
            yield ExecSession(*stream, MessageType.MachineExecInput, MessageType.MachineExecResize)

    async def watch_port_bindings(self) -> None:
        """Have `notifications` tell which ports of the guest lead to containers: all of now, and then what changes."""
        request = MessageType.WatchPortBindingsRequest
        check_reply(await self._exchange(request, None), request)

    async def kill_agent(self) -> None:
        """Have the agent exit with status 1, for tests. Raises `NotSupportedError` where settings do not allow it."""
        check_reply(await self._exchange(MessageType.KillAgentRequest, None), MessageType.KillAgentRequest)

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


def _milliseconds(seconds: float) -> int:
    """Of a time that the agent takes 0 of for its default: at least 1."""
    return max(1, round(seconds * 1000))
