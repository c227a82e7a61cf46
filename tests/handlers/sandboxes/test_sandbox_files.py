"""Requests about files of sandboxes, over a connection; the files are those of a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_guest.sandboxes.files import CHUNK
from arcbox_handlers.sandbox_files import _decode_chunk
from arcbox_protocol import MessageType, arcbox_sandbox_v1, sandbox_v1
from arcbox_protocol.errors import InvalidPayloadError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.handlers.sandboxes.conftest import Rig

T = MessageType
PATH_REQUESTS: dict[MessageType, Any] = {
    T.SandboxFileReadRequest: sandbox_v1.ReadFileRequest,
    T.SandboxFileWriteRequest: sandbox_v1.WriteFileOpen,
    T.StatFileRequest: arcbox_sandbox_v1.StatFileRequest,
    T.ListDirRequest: arcbox_sandbox_v1.ListDirRequest,
    T.MakeDirRequest: arcbox_sandbox_v1.MakeDirRequest,
    T.RemoveEntryRequest: arcbox_sandbox_v1.RemoveEntryRequest,
    T.WatchDirRequest: arcbox_sandbox_v1.WatchDirRequest,
}


@pytest.fixture
async def box(rig: Rig, tmp_path: Path) -> Path:
    """The root directory of a sandbox."""
    rig.sandboxes.driver.files = tmp_path
    await rig.sandboxes.create("box")
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


async def read(rig: Rig, path: str) -> list[sandbox_v1.FileChunk]:
    await rig.peer.send(T.SandboxFileReadRequest, sandbox_v1.ReadFileRequest(id="box", path=path), trace_id="t")
    chunks = [await rig.next(sandbox_v1.FileChunk)]
    while not chunks[-1].done:
        chunks.append(await rig.next(sandbox_v1.FileChunk))
    return chunks


async def test_a_file_is_read_in_chunks_and_an_empty_last_one(rig: Rig, box: Path) -> None:
    content = bytes(range(256)) * 10_000
    (box / "file").write_bytes(content)
    chunks = await read(rig, "/file")
    assert [len(chunk.data) for chunk in chunks] == [CHUNK, CHUNK, len(content) - 2 * CHUNK, 0]
    assert b"".join(chunk.data for chunk in chunks) == content


async def test_an_empty_file_is_read_as_an_empty_last_chunk(rig: Rig, box: Path) -> None:
    (box / "file").touch()
    assert await read(rig, "file") == [sandbox_v1.FileChunk(done=True)]


@pytest.mark.parametrize("last", [sandbox_v1.FileChunk(done=True), sandbox_v1.FileChunk(data=b"z", done=True)])
async def test_a_file_is_there_when_its_last_chunk_has_come(rig: Rig, box: Path, last: sandbox_v1.FileChunk) -> None:
    await rig.peer.send(
        T.SandboxFileWriteRequest, sandbox_v1.WriteFileOpen(id="box", path="/file", mode=0o600), trace_id="t"
    )
    await rig.peer.send(T.SandboxFileChunk, sandbox_v1.FileChunk(data=b"a" * 300), trace_id="t")
    await rig.peer.send(T.SandboxFileChunk, sandbox_v1.FileChunk(data=b"b"), trace_id="t")
    await wait_all_tasks_blocked()
    assert not (box / "file").exists()
    reply = await rig.ask(T.SandboxFileChunk, last)
    assert (reply.type, reply.trace_id, reply.payload) == (T.SandboxFileWriteResponse, "t", b"")
    assert (box / "file").read_bytes() == b"a" * 300 + b"b" + last.data
    assert mode(box / "file") == 0o600


@given(data=st.binary(max_size=300), done=st.booleans())
def test_a_chunk_is_read_by_hand_as_protobuf_reads_it(data: bytes, *, done: bool) -> None:
    payload = sandbox_v1.FileChunk(data=data, done=done).SerializeToString()
    odd = b"\x10\x00" + payload, b"\x0a\x01x" + payload, payload + b"\x10\x00" + payload[len(data) :]
    for same in (payload, *odd):
        try:
            chunk = sandbox_v1.FileChunk.FromString(same)
        except DecodeError:
            with pytest.raises(InvalidPayloadError):
                _decode_chunk(same)
        else:
            read, is_last = _decode_chunk(same)
            assert (bytes(read), is_last) == (chunk.data, chunk.done)


async def test_a_file_that_gets_too_large_is_refused_and_nothing_is_left(rig: Rig, box: Path) -> None:
    rig.sandboxes.guest.sandbox_files._most_bytes = 1000
    await rig.peer.send(T.SandboxFileWriteRequest, sandbox_v1.WriteFileOpen(id="box", path="/file"), trace_id="t")
    await rig.peer.send(T.SandboxFileChunk, sandbox_v1.FileChunk(data=bytes(1000)), trace_id="t")
    refusal = await rig.refusal(T.SandboxFileChunk, sandbox_v1.FileChunk(data=b"1", done=True))
    assert refusal.code == 413
    assert contents(box) == {}


async def test_a_writer_who_leaves_leaves_the_old_file(rig: Rig, box: Path) -> None:
    (box / "file").write_text("old")
    await rig.peer.send(T.SandboxFileWriteRequest, sandbox_v1.WriteFileOpen(id="box", path="/file"), trace_id="t")
    await rig.peer.send(T.SandboxFileChunk, sandbox_v1.FileChunk(data=b"new"), trace_id="t")
    await wait_all_tasks_blocked()
    rig.hang_up()
    await wait_all_tasks_blocked()
    assert contents(box) == {"file": "old"}


async def test_a_chunk_that_is_none_is_error_400(rig: Rig, box: Path) -> None:
    await rig.peer.send(T.SandboxFileWriteRequest, sandbox_v1.WriteFileOpen(id="box", path="/file"), trace_id="t")
    assert (await rig.refusal(T.SandboxFileChunk, b"\x0a\xff")).code == 400


async def test_stat_and_list_tell_what_is_there(rig: Rig, box: Path) -> None:
    (box / "dir").mkdir(mode=0o750)
    (box / "dir" / "link").symlink_to("/nowhere")
    (box / "dir" / "file").write_bytes(b"12345")
    await rig.peer.send(T.ListDirRequest, arcbox_sandbox_v1.ListDirRequest(id="box", path="/dir"), trace_id="t")
    file, link = (await rig.next(arcbox_sandbox_v1.ListDirResponse)).entries
    status = os.stat(box / "dir" / "file")  # noqa: PTH116  takes no time
    modified = Timestamp()
    modified.FromNanoseconds(status.st_mtime_ns)
    assert file == arcbox_sandbox_v1.FileStat(
        name="file",
        kind=arcbox_sandbox_v1.FILE_KIND_FILE,
        size=5,
        mode=status.st_mode & 0o7777,
        modified_at=modified,
        uid=status.st_uid,
        gid=status.st_gid,
    )
    assert (link.kind, link.symlink_target) == (arcbox_sandbox_v1.FILE_KIND_SYMLINK, "/nowhere")
    await rig.peer.send(T.StatFileRequest, arcbox_sandbox_v1.StatFileRequest(id="box", path="/dir"), trace_id="t")
    directory = await rig.next(arcbox_sandbox_v1.FileStat)
    assert (directory.name, directory.kind, directory.mode) == ("dir", arcbox_sandbox_v1.FILE_KIND_DIRECTORY, 0o750)


async def test_directories_are_made_moved_and_removed(rig: Rig, box: Path) -> None:
    reply = await rig.ask(T.MakeDirRequest, arcbox_sandbox_v1.MakeDirRequest(id="box", path="/a/b"))
    assert (reply.type, reply.payload) == (T.MakeDirResponse, b"")
    assert mode(box / "a" / "b") == 0o755
    move = arcbox_sandbox_v1.MoveEntryRequest(id="box", from_path="/a/b", to_path="/c")
    assert (await rig.ask(T.MoveEntryRequest, move)).type == T.MoveEntryResponse
    (box / "c" / "file").touch()
    remove = arcbox_sandbox_v1.RemoveEntryRequest(id="box", path="/c")
    assert (await rig.refusal(T.RemoveEntryRequest, remove)).code == 412
    remove.recursive = True
    assert (await rig.ask(T.RemoveEntryRequest, remove)).type == T.RemoveEntryResponse
    (box / "a").rmdir()
    assert contents(box) == {}


@pytest.mark.parametrize("kind", PATH_REQUESTS, ids=lambda kind: kind.name)
async def test_what_is_not_there_is_error_404(rig: Rig, box: Path, kind: MessageType) -> None:
    request = PATH_REQUESTS[kind]
    (box / "file").touch()
    for refused in (request(id="other", path="/file"), request(id="box", path="/no/such")):
        if kind != T.MakeDirRequest or refused.id == "other":
            refusal = await rig.refusal(kind, refused)
            assert refusal.code == 404, refusal
            assert refused.path in refusal.message or "other" in refusal.message
    assert (await rig.refusal(kind, request(id="box"))).code == 400


@pytest.mark.parametrize("kind", PATH_REQUESTS, ids=lambda kind: kind.name)
async def test_a_sandbox_that_has_stopped_has_no_files_error_412(rig: Rig, box: Path, kind: MessageType) -> None:
    await rig.sandboxes.manager.stop("box", 0)
    assert (await rig.refusal(kind, PATH_REQUESTS[kind](id="box", path="/"))).code == 412


async def test_a_mode_that_is_none_is_error_400(rig: Rig, box: Path) -> None:
    request = arcbox_sandbox_v1.MakeDirRequest(id="box", path="/a", mode=0o10000)
    assert (await rig.refusal(T.MakeDirRequest, request)).code == 400


async def test_a_directory_is_watched_from_the_first_sign_of_life_to_the_end_of_the_sandbox(
    rig: Rig, box: Path
) -> None:
    await rig.peer.send(T.WatchDirRequest, arcbox_sandbox_v1.WatchDirRequest(id="box", path="/"), trace_id="t")
    assert (await rig.next(arcbox_sandbox_v1.WatchDirResponse)).HasField("keep_alive")
    (box / "a").touch()
    (box / "a").rename(box / "b")
    created = (await rig.next(arcbox_sandbox_v1.WatchDirResponse)).event
    while (renamed := (await rig.next(arcbox_sandbox_v1.WatchDirResponse)).event).kind == 2:  # its times were set
        pass
    assert (created.kind, created.path) == (arcbox_sandbox_v1.FS_EVENT_KIND_CREATED, "/a")
    assert renamed == arcbox_sandbox_v1.FsEvent(
        kind=arcbox_sandbox_v1.FS_EVENT_KIND_RENAMED, path="/a", renamed_to="/b"
    )
    await rig.sandboxes.manager.stop("box", 0)
    frame = await rig.peer.receive()
    assert (frame.type, frame.trace_id, frame.payload) == (T.WatchDirEnd, "t", b"")


async def test_a_watch_gives_a_sign_of_life_every_ten_seconds(rig: Rig, box: Path, autojump_clock: MockClock) -> None:
    started = trio.current_time()
    await rig.peer.send(T.WatchDirRequest, arcbox_sandbox_v1.WatchDirRequest(id="box", path="/"), trace_id="t")
    for number in range(3):
        assert (await rig.next(arcbox_sandbox_v1.WatchDirResponse)).HasField("keep_alive")
        assert trio.current_time() - started == pytest.approx(10 * number, abs=1)
