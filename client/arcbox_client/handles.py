"""Sandboxes as objects, with plain Python types: what `AgentClient.sandbox` gives to its context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from attrs import frozen

from arcbox_client.executions import ExecutionHandle

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack

    from arcbox_client._file_requests import FileInfo, FileWatch
    from arcbox_client._sandbox_requests import ExecOptions
    from arcbox_client.client import AgentClient
    from arcbox_client.streams import Completed
    from arcbox_protocol import Buffer, arcbox_sandbox_v1, sandbox_v1


@frozen(eq=False)
class SandboxHandle:
    """A sandbox: `box.run(...)`, `box.start(...)`, `box.files.read(...)`."""

    _client: AgentClient
    id: str

    @property
    def files(self) -> SandboxFiles:
        """Its files."""
        return SandboxFiles(self._client, self.id)

    async def inspect(self) -> sandbox_v1.SandboxInfo:
        """All that the agent knows of it."""
        return await self._client.sandbox_inspect(self.id)

    async def run(self, cmd: Sequence[str], *, stdin: Buffer = b"", **options: Unpack[ExecOptions]) -> Completed:
        """Run a command and return exit code and output, as `AgentClient.run` does."""
        return await self._client.run(self.id, cmd, stdin=stdin, **options)

    async def start(
        self,
        cmd: Sequence[str],
        *,
        execution_id: str = "",
        stdin: bool = False,
        **options: Unpack[ExecOptions],
    ) -> ExecutionHandle:
        """Start a command that outlives this connection; arguments as `AgentClient.execution_start` has them.

        Where the connection is lost meanwhile it is started once all the same: the id, given or made up here, says so.
        """
        execution = ExecutionHandle(self._client, self.id, execution_id or uuid4().hex)
        await execution.begin(cmd, stdin=stdin, **options)
        return execution

    def execution(self, execution_id: str) -> ExecutionHandle:
        """An execution that exists; whether it does shows at its first use."""
        return ExecutionHandle(self._client, self.id, execution_id)

    async def executions(self) -> list[arcbox_sandbox_v1.Execution]:
        """All of them, those that ended too."""
        return await self._client.execution_list(self.id)

    async def pause(self) -> None:
        """Freeze it."""
        await self._client.sandbox_pause(self.id)

    async def resume(self) -> None:
        """Let it go on."""
        await self._client.sandbox_resume(self.id)

    async def set_lifecycle(
        self,
        *,
        ttl: int | None = None,
        idle_timeout: int | None = None,
        on_idle: Literal["kill", "pause"] | None = None,
    ) -> None:
        """Say when it ends by itself, as `AgentClient.sandbox_set_lifecycle` does."""
        await self._client.sandbox_set_lifecycle(self.id, ttl=ttl, idle_timeout=idle_timeout, on_idle=on_idle)

    async def forward(self, port: int, *, protocol: Literal["tcp", "udp"] = "tcp") -> int:
        """A port of the guest that leads to a port of the sandbox."""
        return await self._client.port_forward(self.id, port, protocol=protocol)

    async def wait_for_port(self, port: int, *, timeout: int = 30) -> None:  # noqa: ASYNC109  the guest keeps it
        """Wait until something listens on a TCP port; `GuestTimedOutError` after `timeout` seconds."""
        await self._client.wait_for_port(self.id, port, timeout=timeout)

    async def checkpoint(self, name: str = "") -> str:
        """Make a snapshot; its id."""
        return (await self._client.checkpoint(self.id, name=name)).snapshot_id

    async def stop(self, *, timeout: int = 0) -> None:  # noqa: ASYNC109  the guest keeps it
        """Stop what runs in it, as `AgentClient.sandbox_stop` does."""
        await self._client.sandbox_stop(self.id, timeout=timeout)

    async def remove(self) -> None:
        """Remove it, whatever runs in it."""
        await self._client.sandbox_remove(self.id, force=True)


@frozen(eq=False)
class SandboxFiles:
    """The files of a sandbox. Paths are absolute, and resolved inside it. Errors as `AgentClient.file_...` has them."""

    _client: AgentClient
    _sandbox_id: str

    async def read(self, path: str) -> bytes:
        """All of a file."""
        return await self._client.file_read(self._sandbox_id, path)

    async def write(self, path: str, data: Buffer | AsyncIterable[Buffer], *, mode: int = 0o644) -> None:
        """Write a file, seen whole or not at all."""
        await self._client.file_write(self._sandbox_id, path, data, mode=mode)

    async def list(self, path: str) -> list[FileInfo]:
        """What is in a directory."""
        return await self._client.file_list(self._sandbox_id, path)

    async def stat(self, path: str) -> FileInfo:
        """What a file is; a symlink itself."""
        return await self._client.file_stat(self._sandbox_id, path)

    async def mkdir(self, path: str, *, mode: int = 0o755) -> None:
        """Make a directory, with those above it."""
        await self._client.file_mkdir(self._sandbox_id, path, mode=mode)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or directory."""
        await self._client.file_remove(self._sandbox_id, path, recursive=recursive)

    async def move(self, from_path: str, to_path: str) -> None:
        """Rename a file or directory."""
        await self._client.file_move(self._sandbox_id, from_path, to_path)

    def watch(self, path: str, *, recursive: bool = False) -> AbstractAsyncContextManager[FileWatch]:
        """What happens in a directory: `async with box.files.watch("/srv") as changes:`."""
        return self._client.file_watch(self._sandbox_id, path, recursive=recursive)
