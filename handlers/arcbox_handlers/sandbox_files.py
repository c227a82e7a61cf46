"""Files of sandboxes, as later hosts ask for them: read, write, stat, list, make directory, remove, move, watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.rooted_files import FileKind
from arcbox_guest.sandboxes.watches import Change
from arcbox_handlers._command import StreamCommand, UnaryCommand
from arcbox_handlers._errors import CommandError
from arcbox_handlers._wire import read_varint, varint
from arcbox_protocol import DEFAULT_MAX_FRAME, MessageType, arcbox_sandbox_v1, sandbox_v1
from arcbox_protocol.errors import ErrorCode, InvalidPayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_guest.sandboxes.rooted_files import FileStat
    from arcbox_guest.sandboxes.watches import FileEvent
    from arcbox_handlers._command import Context, ReplyStream

_DATA_TAG: Final = b"\x0a"  # of a FileChunk: field 1, length-delimited
_LAST: Final = sandbox_v1.FileChunk(done=True).SerializeToString()
_KEEP_ALIVE: Final = arcbox_sandbox_v1.WatchDirResponse(keep_alive=arcbox_sandbox_v1.KeepAlive())

_BETWEEN_KEEP_ALIVES: Final = 10.0
"""Seconds."""

_MOST_MODE: Final = 0o7777
_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755
"""The permission bits where a request has 0."""

_LARGEST_REPLY: Final = DEFAULT_MAX_FRAME - 128 * 1024
"""Bytes of a payload that any host takes, whatever the trace id."""

_KINDS: Final = {
    FileKind.FILE: arcbox_sandbox_v1.FILE_KIND_FILE,
    FileKind.DIRECTORY: arcbox_sandbox_v1.FILE_KIND_DIRECTORY,
    FileKind.SYMLINK: arcbox_sandbox_v1.FILE_KIND_SYMLINK,
    FileKind.OTHER: arcbox_sandbox_v1.FILE_KIND_OTHER,
}
_CHANGES: Final = {
    Change.CREATED: arcbox_sandbox_v1.FS_EVENT_KIND_CREATED,
    Change.MODIFIED: arcbox_sandbox_v1.FS_EVENT_KIND_MODIFIED,
    Change.REMOVED: arcbox_sandbox_v1.FS_EVENT_KIND_REMOVED,
    Change.RENAMED: arcbox_sandbox_v1.FS_EVENT_KIND_RENAMED,
}


@frozen
class SandboxFileRead(StreamCommand[sandbox_v1.ReadFileRequest]):
    """The bytes of a regular file, in chunks of up to 1 MiB, and then an empty one that says that it is the last."""

    handles = MessageType.SandboxFileReadRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        async with context.guest.sandbox_files.reading(self.request.id, self.request.path) as file:
            while data := await file.receive():
                await stream.send_payload(_DATA_TAG + varint(len(data)), data)
        await stream.send_payload(_LAST)


@frozen
class SandboxFileWrite(StreamCommand[sandbox_v1.WriteFileOpen]):
    """A file out of the chunks that follow; it is in its place when the last of them has come, and not before."""

    handles = MessageType.SandboxFileWriteRequest
    accepts = frozenset({MessageType.SandboxFileChunk})

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        mode = _mode(self.request.mode, _MODE)
        async with context.guest.sandbox_files.writing(self.request.id, self.request.path) as file:
            last = False
            while not last:
                data, last = _decode_chunk((await stream.inputs.receive()).payload)
                if data:
                    await file.send(data)
            await file.commit(mode)
        await stream.send_payload()


@frozen
class StatFile(UnaryCommand[arcbox_sandbox_v1.StatFileRequest]):
    """What is at a path."""

    handles = MessageType.StatFileRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.FileStat:
        return _file_stat(await context.guest.sandbox_files.stat(self.request.id, self.request.path))


@frozen
class ListDir(UnaryCommand[arcbox_sandbox_v1.ListDirRequest]):
    """What is in a directory."""

    handles = MessageType.ListDirRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.ListDirResponse:
        entries = await context.guest.sandbox_files.list(self.request.id, self.request.path)
        reply = arcbox_sandbox_v1.ListDirResponse(entries=map(_file_stat, entries))
        if reply.ByteSize() > _LARGEST_REPLY:
            raise CommandError(ErrorCode.TOO_LARGE, f"{self.request.path}: {len(entries):,} entries are too many")
        return reply


@frozen
class MakeDir(UnaryCommand[arcbox_sandbox_v1.MakeDirRequest]):
    """A directory, with those on the way there."""

    handles = MessageType.MakeDirRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        mode = _mode(self.request.mode, _DIRECTORY_MODE)
        await context.guest.sandbox_files.make_directory(self.request.id, self.request.path, mode)


@frozen
class RemoveEntry(UnaryCommand[arcbox_sandbox_v1.RemoveEntryRequest]):
    """A file, a symbolic link or a directory less."""

    handles = MessageType.RemoveEntryRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        request = self.request
        await context.guest.sandbox_files.remove(request.id, request.path, recursive=request.recursive)


@frozen
class MoveEntry(UnaryCommand[arcbox_sandbox_v1.MoveEntryRequest]):
    """Another name for a file, a symbolic link or a directory."""

    handles = MessageType.MoveEntryRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        await context.guest.sandbox_files.move(self.request.id, self.request.from_path, self.request.to_path)


@frozen
class WatchDir(StreamCommand[arcbox_sandbox_v1.WatchDirRequest]):
    """What happens in a directory, from the first reply on, which is a sign of life."""

    handles = MessageType.WatchDirRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        request = self.request
        watch = await context.guest.sandbox_files.watch(request.id, request.path, recursive=request.recursive)
        events: Sequence[FileEvent] | None = ()
        due = trio.current_time()
        while events is not None:
            if trio.current_time() >= due:
                await stream.send(_KEEP_ALIVE)
                due = trio.current_time() + _BETWEEN_KEEP_ALIVES
            events = await watch.receive(max(0.0, due - trio.current_time()))
            for event in events or ():
                await stream.send(_event(event))
        await stream.end()


def _mode(asked: int, default: int) -> int:
    if asked > _MOST_MODE:
        raise InvalidArgumentError(f"{asked:#o} is no mode of a file: at most {_MOST_MODE:#o}")
    return asked or default


def _decode_chunk(payload: bytes) -> tuple[memoryview, bool]:
    """The data of a FileChunk, uncopied, and whether it is the last one."""
    if payload.startswith(_DATA_TAG):
        length, start = read_varint(payload, len(_DATA_TAG))
        end = start + length
        if payload[end:] in (b"", b"\x10\x00", b"\x10\x01") and end <= len(payload):
            return memoryview(payload)[start:end], payload.endswith(b"\x01", end)
    try:
        chunk = sandbox_v1.FileChunk.FromString(payload)
    except Exception as error:  # protobuf's DecodeError: importing it by name would load a module more
        raise InvalidPayloadError(f"invalid request: SandboxFileChunk: {error}") from error
    return memoryview(chunk.data), chunk.done


def _file_stat(file: FileStat) -> arcbox_sandbox_v1.FileStat:
    stat = arcbox_sandbox_v1.FileStat(
        name=file.name,
        kind=_KINDS[file.kind],
        size=file.size,
        mode=file.mode,
        uid=file.uid,
        gid=file.gid,
        symlink_target=file.symlink_target,
    )
    stat.modified_at.FromNanoseconds(file.modified_at_ns)
    return stat


def _event(event: FileEvent) -> arcbox_sandbox_v1.WatchDirResponse:
    happened = arcbox_sandbox_v1.FsEvent(kind=_CHANGES[event.change], path=event.path, renamed_to=event.renamed_to)
    return arcbox_sandbox_v1.WatchDirResponse(event=happened)
