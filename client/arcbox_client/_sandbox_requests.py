"""The requests about sandboxes and their snapshots."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, TypedDict, get_args

import trio
from attrs import evolve, frozen

from arcbox_client._requests import Requests, arguments
from arcbox_client.errors import AgentError, NotFoundError, SandboxFailedError, TimedOutError
from arcbox_client.streams import KILLED, ExecSession, KillReason, MessageStream, RunSession
from arcbox_protocol import MessageType, arcbox_sandbox_v1, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from typing import Unpack

    from arcbox_client.streams import Completed
    from arcbox_protocol import Buffer

_USABLE = frozenset({"ready", "running"})

_REASON_WITHIN = 5.0
"""Seconds for finding out why a process was killed."""

_IDLE_ACTIONS: Final = {"kill": arcbox_sandbox_v1.IDLE_ACTION_KILL, "pause": arcbox_sandbox_v1.IDLE_ACTION_PAUSE}
_PROTOCOLS: Final = {"tcp": sandbox_v1.PORT_PROTOCOL_TCP, "udp": sandbox_v1.PORT_PROTOCOL_UDP}


@frozen
class Mount:
    """A directory or file of the guest that a sandbox sees."""

    source: str
    """Absolute, in the guest."""

    target: str
    """Absolute, in the sandbox."""

    readonly: bool = False


class SandboxOptions(TypedDict, total=False):
    """What `sandbox_create` takes besides the id. What is left out is the agent's default."""

    image: str
    """An OCI image, by reference or path, as the agent's settings allow."""

    rootfs: str
    """A directory or a file-system image, in the guest."""

    cmd: Sequence[str]
    """Runs once the sandbox is ready: the program and its arguments."""

    env: Mapping[str, str]
    working_dir: str
    user: str
    """A name, or uid[:gid], of the sandbox's own passwd file."""

    memory_mib: int
    vcpus: int
    mounts: Iterable[Mount | tuple[str, str] | tuple[str, str, bool]]
    network: Literal["tap", "none"]
    ttl: int
    """Seconds from creation after which the agent removes it; 0 is never."""

    labels: Mapping[str, str]
    kernel: str
    boot_args: str
    ssh_public_key: str


class ProcessOptions(TypedDict, total=False):
    """What `sandbox_run` and `sandbox_exec` take besides the command."""

    env: Mapping[str, str]
    working_dir: str
    user: str
    """A name, or uid[:gid], of the sandbox's own passwd file."""

    tty: bool
    timeout: int
    """After so many seconds the agent kills all of it (exit code 137); 0 is never."""


class ExecOptions(ProcessOptions, total=False):
    """What `sandbox_exec` takes besides the command."""

    tty_size: tuple[int, int]
    """Columns and rows; 80 by 24 where it is left out."""


@frozen(eq=False, kw_only=True)
class SandboxRequests(Requests):
    """Sandboxes: create, use, stop, remove, freeze and copy."""

    async def sandbox_create(
        self,
        id: str = "",
        *,
        wait: bool = False,
        **options: Unpack[SandboxOptions],
    ) -> sandbox_v1.CreateSandboxResponse:
        """Begin a sandbox; an empty id lets the agent choose one.

        Args:
            id: letters, digits and `_.-`, at most 64.
            wait: return only once it is ready; see `sandbox_wait_ready`.
            options: see `SandboxOptions`.

        Raises:
            ConflictError: the id is in use.
            BadRequestError: the id is no id, or an option makes no sense.
            NotFoundError: the root file system, a mount's source or the user does not exist.
        """
        request = _create_request(id, options)
        reply = await self._call(MessageType.SandboxCreateRequest, request, sandbox_v1.CreateSandboxResponse)
        if wait:
            info = await self.sandbox_wait_ready(reply.id)
            reply.state, reply.ip_address = info.state, info.network.ip_address or reply.ip_address
        return reply

    async def sandbox_wait_ready(self, id: str) -> sandbox_v1.SandboxInfo:
        """Wait until a sandbox has started: it is ready, or runs its command. Slow.

        Raises:
            SandboxFailedError: it failed, or was stopped or removed.
            TimedOutError: it took longer than a slow request may.
        """
        with trio.move_on_after(self._slow_timeout):
            # What happens after the look at its state is an event, because the subscription began before the look.
            async with self.sandbox_events(id) as events:
                try:
                    while (info := await self.sandbox_inspect(id)).state == "starting":
                        await anext(events)
                except NotFoundError as error:
                    raise SandboxFailedError(id, "removed", "before it was ready") from error
            if info.state not in _USABLE:
                raise SandboxFailedError(id, info.state, info.error or "before it was ready")
            return info
        raise TimedOutError(f"sandbox {id} is not ready within {self._slow_timeout:g} s")

    async def sandbox_stop(self, id: str, *, timeout: int = 0) -> None:  # noqa: ASYNC109  the guest keeps it
        """Stop what runs in a sandbox: SIGTERM, and SIGKILL after `timeout` seconds (0 is the agent's 30). Slow."""
        request = sandbox_v1.StopSandboxRequest(id=id, timeout_seconds=timeout)
        await self._command(MessageType.SandboxStopRequest, request, slow=True)

    async def sandbox_remove(self, id: str, *, force: bool = False) -> None:
        """Remove a sandbox and all that belongs to it. Slow. Raises `ConflictError` while it runs, unless `force`."""
        request = sandbox_v1.RemoveSandboxRequest(id=id, force=force)
        await self._command(MessageType.SandboxRemoveRequest, request, slow=True)

    async def sandbox_inspect(self, id: str) -> sandbox_v1.SandboxInfo:
        """All that the agent knows of a sandbox."""
        request = sandbox_v1.InspectSandboxRequest(id=id)
        return await self._call(MessageType.SandboxInspectRequest, request, sandbox_v1.SandboxInfo)

    async def sandbox_list(
        self, *, state: str = "", labels: Mapping[str, str] | None = None
    ) -> sandbox_v1.ListSandboxesResponse:
        """The sandboxes in this state and with all these labels; empty means any."""
        request = sandbox_v1.ListSandboxesRequest(state=state, labels=labels)
        return await self._call(MessageType.SandboxListRequest, request, sandbox_v1.ListSandboxesResponse)

    async def run(
        self,
        id: str,
        cmd: Sequence[str],
        *,
        stdin: Buffer = b"",
        **options: Unpack[ExecOptions],
    ) -> Completed:
        """Run a command in a sandbox, beside what runs there, and return what it wrote: `subprocess.run`, there.

        All of its output is held in memory. It is killed when this is cancelled.

        Raises:
            NotFoundError: there is no such sandbox.
            ConflictError: it is not ready.
        """
        async with self.sandbox_exec(id, cmd, **options) as session:
            completed = await session.communicate(stdin)
        if completed.exit_code != KILLED:
            return completed
        return evolve(completed, reason=await self.kill_reason(id))

    async def kill_reason(self, id: str) -> KillReason | None:
        """Why the last process of a sandbox, which has just ended by SIGKILL, was killed; None where nobody knows.

        Asks only after the fact: of a sandbox that is gone already it says "removed", even where its time was up.
        Raises nothing, and takes at most 5 s: what is known of the process already is worth more.
        """
        try:
            with trio.move_on_after(_REASON_WITHIN):
                return await self._ask_for_reason(id)
        except NotFoundError:
            return "removed"
        except AgentError:
            pass
        return None

    async def _ask_for_reason(self, id: str) -> KillReason | None:
        async with self.sandbox_events(id, action="removed") as events:
            info = await self.sandbox_inspect(id)
            if info.state != "stopping":
                return _kill_reason(info.error.partition(":")[0])
            return _kill_reason((await anext(events)).attributes["reason"])

    @asynccontextmanager
    async def sandbox_run(
        self,
        id: str,
        cmd: Sequence[str],
        **options: Unpack[ProcessOptions],
    ) -> AsyncIterator[RunSession]:
        """Run a command in a sandbox that runs nothing else: `async with client.sandbox_run(...) as session:`.

        Whether the agent can run it (no such sandbox, wrong state) shows at the first read of the session.

        Raises:
            ConnectError: there is no further connection to be had for this stream.
        """
        request = sandbox_v1.RunRequest(
            id=id,
            cmd=arguments(cmd),
            env=options.get("env"),
            working_dir=options.get("working_dir"),
            user=options.get("user"),
            tty=options.get("tty"),
            timeout_seconds=options.get("timeout"),
        )
        async with self._stream(MessageType.SandboxRunRequest, request, sandbox_v1.RunOutput) as (replies, _, _):
            yield RunSession(replies)

    @asynccontextmanager
    async def sandbox_exec(
        self,
        id: str,
        cmd: Sequence[str],
        **options: Unpack[ExecOptions],
    ) -> AsyncIterator[ExecSession]:
        """Run a command in a sandbox beside what runs there already, with a stdin and maybe a terminal.

        Its stdin stays open until `close_stdin` or `communicate`. Otherwise as `sandbox_run`.
        """
        request = sandbox_v1.ExecRequest(
            id=id,
            cmd=arguments(cmd),
            env=options.get("env"),
            working_dir=options.get("working_dir"),
            user=options.get("user"),
            tty=options.get("tty"),
            tty_size=terminal_size(options.get("tty_size")),
            timeout_seconds=options.get("timeout"),
        )
        async with self._stream(MessageType.SandboxExecRequest, request, sandbox_v1.ExecOutput) as stream:
            yield ExecSession(*stream)

    @asynccontextmanager
    async def sandbox_events(
        self, id: str = "", *, action: str = ""
    ) -> AsyncIterator[MessageStream[sandbox_v1.SandboxEvent]]:
        """Events of one sandbox or of all (""), of one action or of all ("").

        What happens after the context was entered is in there, whoever made it happen.
        """
        request = sandbox_v1.SandboxEventsRequest(id=id, action=action)
        async with self._stream(MessageType.SandboxEventsRequest, request, sandbox_v1.SandboxEvent) as stream:
            replies, multiplexer, _ = stream
            # Nothing tells that it has begun. But what comes after it on the same connection is answered after that.
            await self._exchange_over(multiplexer, MessageType.PingRequest, None)
            yield MessageStream(replies)

    async def sandbox_pause(self, id: str) -> None:
        """Freeze a sandbox that is ready: it keeps its memory and uses no processor."""
        request = arcbox_sandbox_v1.PauseSandboxRequest(id=id)
        await self._command(MessageType.PauseSandboxRequest, request)

    async def sandbox_resume(self, id: str, *, reason: str = "") -> arcbox_sandbox_v1.SandboxResumeResponse:
        """Let a paused sandbox go on; the reply has its address."""
        request = arcbox_sandbox_v1.SandboxResumeCommand(id=id, reason=reason)
        return await self._call(MessageType.ResumeSandboxRequest, request, arcbox_sandbox_v1.SandboxResumeResponse)

    async def sandbox_set_lifecycle(
        self,
        id: str,
        *,
        ttl: int | None = None,
        idle_timeout: int | None = None,
        on_idle: Literal["kill", "pause"] | None = None,
    ) -> None:
        """Say when a sandbox ends by itself. What is None stays as it is.

        Args:
            id: the sandbox.
            ttl: seconds from now after which it is removed; 0 is never.
            idle_timeout: seconds without a process or a request; 0 is never.
            on_idle: what happens to it then.
        """
        request = arcbox_sandbox_v1.SetLifecycleRequest(
            id=id,
            ttl_seconds=ttl,
            idle_timeout_seconds=idle_timeout,
            on_idle=None if on_idle is None else _IDLE_ACTIONS[on_idle],
        )
        await self._command(MessageType.SetLifecycleRequest, request)

    async def port_forward(self, id: str, port: int, *, protocol: Literal["tcp", "udp"] = "tcp") -> int:
        """Forward a port of the guest to a sandbox's port; which one is returned. It ends with the sandbox."""
        request = sandbox_v1.SandboxPortForwardRequest(id=id, sandbox_port=port, protocol=_PROTOCOLS[protocol])
        reply = await self._call(MessageType.SandboxPortForwardRequest, request, sandbox_v1.SandboxPortForwardResponse)
        return reply.guest_port

    async def port_forward_remove(self, id: str, port: int, *, protocol: Literal["tcp", "udp"] = "tcp") -> None:
        """Take a forwarding back."""
        request = sandbox_v1.SandboxPortForwardRemoveRequest(id=id, sandbox_port=port, protocol=_PROTOCOLS[protocol])
        await self._command(MessageType.SandboxPortForwardRemoveRequest, request)

    async def wait_for_port(self, id: str, port: int, *, timeout: int = 30) -> None:  # noqa: ASYNC109  the guest keeps it
        """Wait until something in a sandbox listens on a TCP port; `GuestTimedOutError` after `timeout` seconds."""
        request = arcbox_sandbox_v1.WaitForPortRequest(sandbox_id=id, port=port, timeout_seconds=timeout)
        patient = self.within(timeout + self._timeout)
        await patient._command(MessageType.WaitForPortRequest, request)  # noqa: SLF001  the same class

    async def checkpoint(
        self,
        id: str,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> sandbox_v1.CheckpointResponse:
        """Make a snapshot of a sandbox that is ready. Slow."""
        request = sandbox_v1.CheckpointRequest(sandbox_id=id, name=name, labels=labels)
        return await self._call(MessageType.SandboxCheckpointRequest, request, sandbox_v1.CheckpointResponse, slow=True)

    async def restore(
        self,
        snapshot_id: str,
        id: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        network_override: bool = False,
        ttl: int = 0,
    ) -> sandbox_v1.RestoreResponse:
        """Make a new sandbox from a snapshot; an empty id lets the agent choose one. `ttl` in seconds. Slow."""
        request = sandbox_v1.RestoreRequest(
            id=id, snapshot_id=snapshot_id, labels=labels, network_override=network_override, ttl_seconds=ttl
        )
        return await self._call(MessageType.SandboxRestoreRequest, request, sandbox_v1.RestoreResponse, slow=True)

    async def list_snapshots(
        self,
        id: str = "",
        *,
        labels: Mapping[str, str] | None = None,
    ) -> sandbox_v1.ListSnapshotsResponse:
        """The snapshots of a sandbox, or of all (""), with all these labels."""
        request = sandbox_v1.ListSnapshotsRequest(sandbox_id=id, labels=labels)
        return await self._call(MessageType.SandboxListSnapshotsRequest, request, sandbox_v1.ListSnapshotsResponse)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot; safe for the sandboxes that were made from it."""
        request = sandbox_v1.DeleteSnapshotRequest(snapshot_id=snapshot_id)
        await self._command(MessageType.SandboxDeleteSnapshotRequest, request)


def terminal_size(size: tuple[int, int] | None) -> sandbox_v1.TerminalSize | None:
    """Columns and rows as the wire has them."""
    return None if size is None else sandbox_v1.TerminalSize(width=size[0], height=size[1])


def _create_request(sandbox_id: str, options: SandboxOptions) -> sandbox_v1.CreateSandboxRequest:
    limits = sandbox_v1.ResourceLimits(vcpus=options.get("vcpus"), memory_mib=options.get("memory_mib"))
    network = options.get("network")
    return sandbox_v1.CreateSandboxRequest(
        id=sandbox_id,
        labels=options.get("labels"),
        kernel=options.get("kernel"),
        rootfs=options.get("rootfs"),
        boot_args=options.get("boot_args"),
        limits=limits if limits.ByteSize() else None,
        image=options.get("image"),
        cmd=arguments(options.get("cmd", ())),
        env=options.get("env"),
        working_dir=options.get("working_dir"),
        user=options.get("user"),
        mounts=[_mount_message(mount) for mount in options.get("mounts", ())],
        network=None if network is None else sandbox_v1.NetworkSpec(mode=network),
        ttl_seconds=options.get("ttl"),
        ssh_public_key=options.get("ssh_public_key"),
    )


def _mount_message(mount: Mount | tuple[str, str] | tuple[str, str, bool]) -> sandbox_v1.Mount:
    given = mount if isinstance(mount, Mount) else Mount(*mount)
    return sandbox_v1.Mount(source=given.source, target=given.target, readonly=given.readonly)


def _kill_reason(said: str) -> KillReason | None:
    known: tuple[KillReason, ...] = get_args(KillReason)
    return next((reason for reason in known if reason == said), None)
