"""Files of sandboxes, and the streams about the machine, against a fake agent in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field

from arcbox_client import (
    FileChange,
    FileInfo,
    NotFoundError,
    SandboxHandle,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)
from arcbox_client.testing import memory_pair
from arcbox_protocol import ErrorReply, MessageType, arcbox_sandbox_v1, arcbox_v1, sandbox_v1

if TYPE_CHECKING:
    from trio.testing import MockClock

    from arcbox_client.testing import FakeAgent, Script

T = MessageType

BYTES = bytes(range(256)) * 8192  # 2 MiB


def chunk(data: bytes = b"", *, done: bool = False) -> sandbox_v1.FileChunk:
    return sandbox_v1.FileChunk(data=data, done=done)


async def test_a_file_is_read_in_pieces_and_whole() -> None:
    pieces = [chunk(BYTES[:1000]), chunk(BYTES[1000:]), chunk(done=True)]
    async with memory_pair({T.SandboxFileReadRequest: lambda _: list(pieces)}) as (client, agent):
        assert await client.file_read("box", "/a") == BYTES
        async with client.file_reader("box", "/a") as reader:
            assert [len(piece) async for piece in reader] == [1000, len(BYTES) - 1000]
    assert agent.requests[0].message == sandbox_v1.ReadFileRequest(id="box", path="/a")


async def test_a_file_that_can_not_be_read_is_an_error_also_in_the_middle() -> None:
    script: Script = {T.SandboxFileReadRequest: lambda _: [chunk(b"some"), ErrorReply(404, "it is gone")]}
    async with memory_pair(script) as (client, _):
        with pytest.raises(NotFoundError, match="it is gone"):
            await client.file_read("box", "/a")


async def test_a_file_that_does_not_come_in_time_is_an_error(autojump_clock: MockClock) -> None:
    async with memory_pair({T.SandboxFileReadRequest: lambda _: [chunk(b"some")]}) as (client, _):
        with pytest.raises(TimedOutError, match="no data within 30 s"):
            await client.file_read("box", "/a")


async def take_file(agent: FakeAgent) -> bytes:
    """Take one file as an agent does, and acknowledge it."""
    opened = await agent.receive()
    assert opened.message == sandbox_v1.WriteFileOpen(id="box", path="/a", mode=0o600)
    data = b""
    while True:
        request = await agent.receive()
        assert (request.type, request.trace_id) == (T.SandboxFileChunk, opened.trace_id)
        piece = sandbox_v1.FileChunk.FromString(request.payload)
        assert len(piece.data) <= 1024 * 1024
        data += piece.data
        if piece.done:
            await agent.reply(opened)
            return data


@define
class Pieces:
    """Pieces of a file as they come, and what then fails here."""

    _left: list[bytes]
    _failure: Exception = field(factory=StopAsyncIteration)

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._left:
            raise self._failure
        return self._left.pop(0)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_file_is_written_whole_from_bytes_or_from_pieces(streamed: bool) -> None:  # noqa: FBT001  a parameter
    taken: list[bytes] = []

    async def take() -> None:
        taken.append(await take_file(agent))

    async with memory_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await client.file_write("box", "/a", Pieces([BYTES[:5], b"", BYTES[5:]]) if streamed else BYTES, mode=0o600)
    assert taken == [BYTES]


async def test_a_refusal_ends_what_is_being_written() -> None:
    async def refuse() -> None:
        await agent.reply(await agent.receive(), ErrorReply(413, "at most 1 KiB"))
        while True:
            await agent.receive()

    async with memory_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(TooLargeError, match="at most 1 KiB"):
            await client.file_write("box", "/a", Pieces([bytes(1024)] * 100_000))
        nursery.cancel_scope.cancel()


async def test_what_fails_to_be_read_here_is_what_a_write_raises() -> None:
    async with memory_pair() as (client, _):
        with pytest.raises(OSError, match="the disk of this machine"):
            await client.file_write("box", "/a", Pieces([b"some"], OSError("the disk of this machine")))


async def test_files_are_described_in_plain_types() -> None:
    stat = arcbox_sandbox_v1.FileStat(
        name="l", kind=arcbox_sandbox_v1.FILE_KIND_SYMLINK, size=3, mode=0o777, uid=1, gid=2, symlink_target="../x"
    )
    stat.modified_at.FromSeconds(1_767_225_600)
    script = {
        T.StatFileRequest: lambda _: stat,
        T.ListDirRequest: lambda _: arcbox_sandbox_v1.ListDirResponse(entries=[stat]),
    }
    expected = FileInfo(
        name="l",
        kind="symlink",
        size=3,
        mode=0o777,
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
        uid=1,
        gid=2,
        symlink_target="../x",
    )
    async with memory_pair(script) as (client, _):
        files = SandboxHandle(client, "box").files
        assert await files.stat("/l") == expected
        assert await files.list("/") == [expected]


def change(kind: arcbox_sandbox_v1.FsEventKind, path: str, renamed_to: str = "") -> arcbox_sandbox_v1.WatchDirResponse:
    return arcbox_sandbox_v1.WatchDirResponse(
        event=arcbox_sandbox_v1.FsEvent(kind=kind, path=path, renamed_to=renamed_to)
    )


async def test_a_watch_has_begun_when_it_is_entered_and_ends_with_the_sandbox() -> None:
    async def tell() -> None:
        request = await agent.receive()
        assert request.message == arcbox_sandbox_v1.WatchDirRequest(id="box", path="/srv", recursive=True)
        alive = arcbox_sandbox_v1.WatchDirResponse(keep_alive=arcbox_sandbox_v1.KeepAlive())
        created, renamed = arcbox_sandbox_v1.FS_EVENT_KIND_CREATED, arcbox_sandbox_v1.FS_EVENT_KIND_RENAMED
        for reply in (alive, change(created, "/srv/a"), alive, change(renamed, "/srv/a", "/srv/b")):
            await agent.reply(request, reply)
        await agent.send(T.WatchDirEnd, request.trace_id)

    async with memory_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        async with client.file_watch("box", "/srv", recursive=True) as watch:
            changes = [change async for change in watch]
    assert changes == [FileChange("created", "/srv/a", ""), FileChange("renamed", "/srv/a", "/srv/b")]


async def test_changes_that_were_lost_are_an_error() -> None:
    removed = change(arcbox_sandbox_v1.FS_EVENT_KIND_REMOVED, "/a")
    script: Script = {T.WatchDirRequest: lambda _: [removed, ErrorReply(503, "lost")]}
    async with memory_pair(script) as (client, _), client.file_watch("box", "/") as watch:
        assert (await anext(watch)).kind == "removed"
        with pytest.raises(UnavailableError, match="lost"):
            await anext(watch)


async def test_stats_end_after_their_time_without_a_word(autojump_clock: MockClock) -> None:
    async with (
        memory_pair({T.WatchStatsRequest: lambda _: [arcbox_v1.MachineStats(online_cpus=2)] * 2}) as (
            client,
            agent,
        ),
        client.watch_stats(interval=0.5, duration=20) as stats,
    ):
        assert [sample.online_cpus async for sample in stats] == [2, 2]
    assert agent.requests[0].message == arcbox_v1.WatchStatsRequest(timeout_ms=20_000, interval_ms=500)


@pytest.mark.parametrize("start", [False, True])
async def test_readiness_ends_with_its_last_event(start: bool) -> None:  # noqa: FBT001  a parameter
    kinds = arcbox_v1.ReadinessEvent
    events = [kinds(kind=kinds.AGENT_READY), kinds(kind=kinds.RUNTIME_STARTING), kinds(kind=kinds.RUNTIME_FAILED)]
    async with (
        memory_pair({T.WatchReadinessRequest: lambda _: list(events)}) as (client, _),
        client.watch_readiness(start_runtime_if_needed=start) as stream,
    ):
        assert [event async for event in stream] == (events if start else events[:1])


async def test_a_command_of_the_guest_itself_has_a_stdin_and_an_exit_code() -> None:
    async def cat() -> None:
        request = await agent.receive()
        assert request.message == arcbox_v1.MachineExecRequest(cmd=["cat"], attach_stdin=True)
        while (stdin := await agent.receive()).payload:
            assert stdin.type == T.MachineExecInput
            await agent.reply(request, arcbox_v1.MachineExecOutput(stream="stdout", data=stdin.payload))
        await agent.reply(request, arcbox_v1.MachineExecOutput(exit_code=-1, exit_signal="TERM", done=True))

    async with memory_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(cat)
        async with client.machine_exec(["cat"]) as session:
            done = await session.communicate(b"some")
    assert (done.exit_code, done.stdout) == (143, b"some")
