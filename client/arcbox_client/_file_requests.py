"""The requests about files in sandboxes, as root there: paths are resolved inside the sandbox and lead nowhere else."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import trio
from attrs import define, field, frozen

from arcbox_client._background import beside
from arcbox_client._requests import Requests, encode_chunk, parse_chunk
from arcbox_client.errors import AgentError, TimedOutError
from arcbox_protocol import MessageType, arcbox_sandbox_v1, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from arcbox_client._multiplexer import Multiplexer
    from arcbox_client._requests import Replies
    from arcbox_protocol import Buffer

CHUNK: Final = 1024 * 1024
"""Bytes of a file in one frame, at most."""

FileKind = Literal["file", "directory", "symlink", "other"]
ChangeKind = Literal["created", "modified", "removed", "renamed"]

_FILE_KINDS: Final[dict[int, FileKind]] = {
    arcbox_sandbox_v1.FILE_KIND_FILE: "file",
    arcbox_sandbox_v1.FILE_KIND_DIRECTORY: "directory",
    arcbox_sandbox_v1.FILE_KIND_SYMLINK: "symlink",
}
_CHANGE_KINDS: Final[dict[int, ChangeKind]] = {
    arcbox_sandbox_v1.FS_EVENT_KIND_CREATED: "created",
    arcbox_sandbox_v1.FS_EVENT_KIND_MODIFIED: "modified",
    arcbox_sandbox_v1.FS_EVENT_KIND_REMOVED: "removed",
    arcbox_sandbox_v1.FS_EVENT_KIND_RENAMED: "renamed",
}


@frozen(kw_only=True)
class FileInfo:
    """What stat(2) says of a file, itself and not what it links to."""

    name: str
    """Without directories."""

    kind: FileKind
    size: int
    mode: int
    """Permission bits."""

    modified_at: datetime
    uid: int
    gid: int
    symlink_target: str
    """Empty for everything but a symlink."""


@frozen
class FileChange:
    """Something that happened below a directory that is watched."""

    kind: ChangeKind
    path: str
    renamed_to: str
    """Empty for everything but a renaming."""


@define(eq=False)
class FileReader:
    """The bytes of a file as they come: `async for data in reader`."""

    _replies: Replies[sandbox_v1.FileChunk]
    _patience: float
    """Seconds for each piece."""

    _ended: bool = False

    def __aiter__(self) -> FileReader:
        return self

    async def __anext__(self) -> bytes:
        """The next piece, at most 1 MiB.

        Raises:
            NotFoundError: there is no such file; every other `RequestFailedError` too.
            TimedOutError: it did not come in time.
        """
        while not self._ended:
            with trio.move_on_after(self._patience) as scope:
                data, self._ended = parse_chunk((await self._replies.next_frame()).payload)
                if data:
                    return data
            if scope.cancelled_caught:
                raise TimedOutError(f"SandboxFileReadRequest: no data within {self._patience:g} s")
        raise StopAsyncIteration


@define(eq=False)
class FileWatch:
    """What happens below a directory: `async for change in watch`, a `FileChange` each. It ends with the sandbox."""

    _replies: Replies[arcbox_sandbox_v1.WatchDirResponse]
    _first: arcbox_sandbox_v1.WatchDirResponse | None

    def __aiter__(self) -> FileWatch:
        return self

    async def __anext__(self) -> FileChange:
        """The next change.

        Raises:
            UnavailableError: more happened than was kept for this consumer; changes are missing.
        """
        while True:
            try:
                reply, self._first = self._first or await self._replies.next(), None
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
            if reply.HasField("event"):
                return FileChange(
                    _CHANGE_KINDS.get(reply.event.kind, "modified"), reply.event.path, reply.event.renamed_to
                )


@frozen(eq=False, kw_only=True)
class FileRequests(Requests):
    """Read, write, list and watch files of a sandbox that is ready, running or paused. `id` is the sandbox.

    Besides what all requests raise: `NotFoundError` where there is no such file or sandbox, `ConflictError` where it
    exists already.
    """

    @asynccontextmanager
    async def file_reader(self, id: str, path: str) -> AsyncIterator[FileReader]:
        """The bytes of a file, piece by piece: `async with client.file_reader(...) as reader:`."""
        request = sandbox_v1.ReadFileRequest(id=id, path=path)
        async with self._stream(MessageType.SandboxFileReadRequest, request, sandbox_v1.FileChunk) as (replies, _, _):
            yield FileReader(replies, self._timeout)

    async def file_read(self, id: str, path: str) -> bytes:
        """All of a file, in memory."""
        async with self.file_reader(id, path) as reader:
            return b"".join([data async for data in reader])

    async def file_write(self, id: str, path: str, data: Buffer | AsyncIterable[Buffer], *, mode: int = 0o644) -> None:
        """Write a file, in place of one that is there. It is seen whole or not at all.

        Args:
            id: the sandbox.
            path: absolute; its directory must exist.
            data: all of it, or an async iterable of its pieces.
            mode: permission bits.

        Raises:
            TooLargeError: it is larger than the agent's settings allow.
        """
        request = sandbox_v1.WriteFileOpen(id=id, path=path, mode=mode)
        async with self._stream(MessageType.SandboxFileWriteRequest, request, sandbox_v1.Empty) as stream:
            replies, multiplexer, trace_id = stream
            sending, answer = trio.CancelScope(), _Answer()
            async with beside(partial(answer.wait, replies, sending)):
                with sending:  # until the agent refuses
                    await _send_pieces(multiplexer, trace_id, data)
                with trio.move_on_after(self._timeout):
                    await answer.given.wait()
        if answer.error is not None:
            raise answer.error
        if not answer.given.is_set():
            raise TimedOutError(f"SandboxFileWriteRequest: no reply within {self._timeout:g} s (trace id {trace_id})")

    async def file_stat(self, id: str, path: str) -> FileInfo:
        """What a file is; a symlink itself."""
        request = arcbox_sandbox_v1.StatFileRequest(id=id, path=path)
        return _file_info(await self._call(MessageType.StatFileRequest, request, arcbox_sandbox_v1.FileStat))

    async def file_list(self, id: str, path: str) -> list[FileInfo]:
        """What is in a directory."""
        request = arcbox_sandbox_v1.ListDirRequest(id=id, path=path)
        reply = await self._call(MessageType.ListDirRequest, request, arcbox_sandbox_v1.ListDirResponse)
        return [_file_info(entry) for entry in reply.entries]

    async def file_mkdir(self, id: str, path: str, *, mode: int = 0o755) -> None:
        """Make a directory, and those above it that do not exist."""
        request = arcbox_sandbox_v1.MakeDirRequest(id=id, path=path, mode=mode)
        await self._command(MessageType.MakeDirRequest, request)

    async def file_remove(self, id: str, path: str, *, recursive: bool = False) -> None:
        """Remove a file or directory. `PreconditionFailedError`: it is not empty, and `recursive` is False. Slow."""
        request = arcbox_sandbox_v1.RemoveEntryRequest(id=id, path=path, recursive=recursive)
        await self._command(MessageType.RemoveEntryRequest, request, slow=True)

    async def file_move(self, id: str, from_path: str, to_path: str) -> None:
        """Rename a file or directory."""
        request = arcbox_sandbox_v1.MoveEntryRequest(id=id, from_path=from_path, to_path=to_path)
        await self._command(MessageType.MoveEntryRequest, request)

    @asynccontextmanager
    async def file_watch(self, id: str, path: str, *, recursive: bool = False) -> AsyncIterator[FileWatch]:
        """What happens in a directory, or with `recursive` below it too, from when the context was entered."""
        request = arcbox_sandbox_v1.WatchDirRequest(id=id, path=path, recursive=recursive)
        reply = arcbox_sandbox_v1.WatchDirResponse
        async with self._stream(MessageType.WatchDirRequest, request, reply) as (replies, _, _):
            first = None
            with trio.move_on_after(self._timeout):
                first = await replies.next()  # a keep-alive, which says that it has begun
            if first is None:
                raise TimedOutError(f"WatchDirRequest: no reply within {self._timeout:g} s")
            yield FileWatch(replies, first)


@define(eq=False)
class _Answer:
    """The answer to a request that is still being sent."""

    error: AgentError | None = None
    given: trio.Event = field(init=False, factory=trio.Event)

    async def wait(self, replies: Replies[sandbox_v1.Empty], sending: trio.CancelScope) -> None:
        """Wait for it, and end what is being sent."""
        try:
            await replies.next_frame()
        except AgentError as error:
            self.error = error
        self.given.set()
        sending.cancel()


async def _send_pieces(multiplexer: Multiplexer, trace_id: str, data: Buffer | AsyncIterable[Buffer]) -> None:
    if isinstance(data, (bytes, bytearray, memoryview)):
        await _send_piece(multiplexer, trace_id, data)
    else:
        async for piece in data:
            await _send_piece(multiplexer, trace_id, piece)
    end = sandbox_v1.FileChunk(done=True).SerializeToString()
    await multiplexer.send(MessageType.SandboxFileChunk, trace_id, end)


async def _send_piece(multiplexer: Multiplexer, trace_id: str, piece: Buffer) -> None:
    view = memoryview(piece).cast("B")
    for start in range(0, len(view), CHUNK):
        await multiplexer.send(MessageType.SandboxFileChunk, trace_id, encode_chunk(view[start : start + CHUNK]))


def _file_info(stat: arcbox_sandbox_v1.FileStat) -> FileInfo:
    return FileInfo(
        name=stat.name,
        kind=_FILE_KINDS.get(stat.kind, "other"),
        size=stat.size,
        mode=stat.mode,
        modified_at=stat.modified_at.ToDatetime(UTC),
        uid=stat.uid,
        gid=stat.gid,
        symlink_target=stat.symlink_target,
    )
