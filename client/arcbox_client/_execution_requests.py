"""The requests about executions: processes in sandboxes that outlive their connection and the agent."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_client._requests import Requests, arguments
from arcbox_client.streams import MessageStream
from arcbox_protocol import MessageType, arcbox_sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Unpack

    from arcbox_client._sandbox_requests import ExecOptions
    from arcbox_protocol import Buffer


@frozen(eq=False, kw_only=True)
class ExecutionRequests(Requests):
    """Start, attach to, feed, signal and wait for executions. Each has an id of its own within its sandbox.

    Besides what all requests raise: `NotFoundError` where there is no such sandbox or execution, `PausedError` where
    the sandbox is paused.
    """

    async def execution_start(
        self,
        id: str,
        cmd: Sequence[str],
        *,
        execution_id: str = "",
        stdin: bool = False,
        **options: Unpack[ExecOptions],
    ) -> arcbox_sandbox_v1.Execution:
        """Start a process in a sandbox.

        Args:
            id: the sandbox.
            cmd: the program and its arguments.
            execution_id: "" lets the agent choose one. One that exists is returned as it is, so a retry starts nothing.
            stdin: whether it has a stdin; otherwise that is empty.
            options: see `ExecOptions`.
        """
        size = options.get("tty_size")
        request = arcbox_sandbox_v1.StartExecutionRequest(
            sandbox_id=id,
            execution_id=execution_id,
            cmd=arguments(cmd),
            env=options.get("env"),
            working_dir=options.get("working_dir"),
            user=options.get("user"),
            tty=options.get("tty"),
            tty_size=None if size is None else arcbox_sandbox_v1.TerminalSize(width=size[0], height=size[1]),
            timeout_seconds=options.get("timeout"),
            stdin=stdin,
        )
        return await self._call(MessageType.StartExecutionRequest, request, arcbox_sandbox_v1.Execution)

    @asynccontextmanager
    async def execution_attach(
        self, id: str, execution_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0
    ) -> AsyncIterator[MessageStream[arcbox_sandbox_v1.ExecutionEvent]]:
        """The events of an execution: started, its output from these offsets on, keep-alives, and at last exited.

        Where less is kept, output begins with the oldest that is, at its true offset. Leaving early harms nothing.
        """
        request = arcbox_sandbox_v1.AttachExecutionRequest(
            sandbox_id=id, execution_id=execution_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset
        )
        event = arcbox_sandbox_v1.ExecutionEvent
        async with self._stream(MessageType.AttachExecutionRequest, request, event) as (replies, _, _):
            yield MessageStream(replies, lambda event: event.HasField("exited"))

    async def execution_write_stdin(
        self, id: str, execution_id: str, data: Buffer, *, offset: int, eof: bool = False
    ) -> arcbox_sandbox_v1.StdinStatus:
        """Write to an execution's stdin at an offset; what was written there before is not written again. Slow.

        Answered when the process or the agent's bounded buffer took it; `bytes_written` of the reply is the offset for
        what follows. `eof` ends stdin after it.

        Raises:
            OutOfRangeError: the offset is beyond what was written.
            PreconditionFailedError: it has no stdin, or no more.
        """
        request = arcbox_sandbox_v1.WriteStdinRequest(
            sandbox_id=id, execution_id=execution_id, offset=offset, data=bytes(data), eof=eof
        )
        return await self._call(MessageType.WriteStdinRequest, request, arcbox_sandbox_v1.StdinStatus, slow=True)

    async def execution_stdin_status(self, id: str, execution_id: str) -> arcbox_sandbox_v1.StdinStatus:
        """How much of an execution's stdin was written, and whether it has ended."""
        request = arcbox_sandbox_v1.GetStdinStatusRequest(sandbox_id=id, execution_id=execution_id)
        return await self._call(MessageType.GetStdinStatusRequest, request, arcbox_sandbox_v1.StdinStatus)

    async def execution_signal(self, id: str, execution_id: str, signal: int) -> None:
        """Send a signal, by its POSIX number, to an execution's process."""
        request = arcbox_sandbox_v1.SignalExecutionRequest(sandbox_id=id, execution_id=execution_id)
        request.signal = signal  # type: ignore[assignment]  # an open enum: it takes numbers that have no name here
        await self._command(MessageType.SignalExecutionRequest, request)

    async def execution_resize(self, id: str, execution_id: str, columns: int, rows: int) -> None:
        """Tell an execution's terminal its new size."""
        size = arcbox_sandbox_v1.TerminalSize(width=columns, height=rows)
        request = arcbox_sandbox_v1.ResizeExecutionTtyRequest(sandbox_id=id, execution_id=execution_id, size=size)
        await self._command(MessageType.ResizeExecutionTtyRequest, request)

    async def execution_wait(
        self,
        id: str,
        execution_id: str,
        *,
        timeout: int = 0,  # noqa: ASYNC109  the guest keeps it
    ) -> arcbox_sandbox_v1.Execution:
        """What has become of an execution once it has exited or `timeout` seconds have passed; 0 is now."""
        request = arcbox_sandbox_v1.WaitExecutionRequest(
            sandbox_id=id, execution_id=execution_id, timeout_seconds=timeout
        )
        patient = self.within(timeout + self._timeout)
        return await patient._call(  # noqa: SLF001  the same class
            MessageType.WaitExecutionRequest, request, arcbox_sandbox_v1.Execution
        )

    async def execution_list(self, id: str) -> list[arcbox_sandbox_v1.Execution]:
        """The executions of a sandbox, those that ended too."""
        request = arcbox_sandbox_v1.ListExecutionsRequest(sandbox_id=id)
        reply = await self._call(MessageType.ListExecutionsRequest, request, arcbox_sandbox_v1.ListExecutionsResponse)
        return list(reply.executions)
