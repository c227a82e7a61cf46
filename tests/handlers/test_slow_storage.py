"""MmapReadFile of a file whose pages come late, or never, for real: only its own request waits for them."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define

from arcbox_agent.transport import SocketTransport
from arcbox_agent.writer import FrameWriter
from arcbox_guest.files import FileRange
from arcbox_guest.testing import fake_guest
from arcbox_handlers import CommandError, Context, FileReply
from arcbox_handlers.files import MmapReadFile, _reply
from arcbox_handlers.system import Ping
from arcbox_protocol import Frame, FrameDecoder, MessageType, arcbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIZE = 1_000_000
CONTEXT = Context(guest=fake_guest(), version="0")


@define
class SlowStorage:
    """A mounted file whose first read waits for `go_on`, and one that can't be read."""

    slow: Path
    broken: Path
    _server: trio.Process
    _said: bytes = b""

    async def says(self) -> str:
        """The next line from the server."""
        assert self._server.stdout is not None
        while b"\n" not in self._said:
            data = await self._server.stdout.receive_some()
            assert data, "the server of the file system ended"
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def pause(self) -> None:
        """Answer nothing at all."""
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    async def go_on(self) -> None:
        assert self._server.stdin is not None
        await self._server.stdin.send_all(b"go on\n")


@pytest.fixture
def fuse(may_mount: None) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse here")


@pytest.fixture
async def slow_storage(fuse: None, tmp_path: Path) -> AsyncIterator[SlowStorage]:
    directory = tmp_path / "mounted"
    directory.mkdir()
    script = Path(__file__).with_name("slow_file_system.py")
    async with trio.open_nursery() as nursery:
        command = [sys.executable, script, directory, str(SIZE)]
        run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        storage = SlowStorage(directory / "slow", directory / "broken", await nursery.start(run))
        try:
            assert await storage.says() == "mounted"
            yield storage
        finally:
            subprocess.run(["umount", "--lazy", directory], check=False)  # noqa: ASYNC221, S603, S607  takes no time
            nursery.cancel_scope.cancel()


def content() -> bytes:
    return b"".join(b"%07d\n" % number for number in range(SIZE // 8))


async def read(path: Path | str) -> bytes:
    request = arcbox_v1.MmapReadFileRequest(path=str(path), length=SIZE)
    reply = await MmapReadFile(request)(CONTEXT)
    assert isinstance(reply, FileReply)
    with closing(reply.file) as file:
        return os.pread(file.descriptor, file.length, file.offset)


def descriptors() -> dict[str, str]:
    """What this process has open, without what listing it takes."""
    return {link.name: str(link.readlink()) for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()}


async def test_while_pages_of_a_file_are_awaited_everything_else_is_answered(
    slow_storage: SlowStorage, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"quick")
    data = b""

    async def read_slowly() -> None:
        nonlocal data
        data = await read(slow_storage.slow)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        assert await slow_storage.says() == "reading"
        assert Ping(arcbox_v1.AgentPingRequest())(CONTEXT).message == "pong"
        assert await read(other) == b"quick"
        assert data == b""
        await slow_storage.go_on()
    assert data == content()


async def test_a_peer_that_goes_away_does_not_wait_for_the_pages_and_leaves_no_descriptor(
    slow_storage: SlowStorage,
) -> None:
    before = descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, slow_storage.slow)
        assert await slow_storage.says() == "reading"
        nursery.cancel_scope.cancel()
    assert str(slow_storage.slow) in descriptors().values()
    await slow_storage.go_on()
    assert await slow_storage.says() == "closed"
    assert descriptors() == before


async def test_pages_that_are_gone_when_they_are_sent_are_awaited_by_their_own_connection_only(
    slow_storage: SlowStorage,
) -> None:
    request = arcbox_v1.MmapReadFileRequest(path=str(slow_storage.slow), length=SIZE)
    replies: list[FileReply] = []
    received = b""

    async def open_it() -> None:
        reply = await MmapReadFile(request)(CONTEXT)
        assert isinstance(reply, FileReply)
        replies.append(reply)

    async def send_it() -> None:
        assert await transport.send_file(reply.file) == SIZE

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_it)
        assert await slow_storage.says() == "reading"
        await slow_storage.go_on()
    (reply,) = replies
    ours, theirs = socket.socketpair()
    rescue = threading.Timer(10, slow_storage.resume)  # for an event loop that waits
    with closing(reply.file) as file, closing(SocketTransport(ours)) as transport, theirs:
        slow_storage.pause()
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        rescue.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_it)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert rescue.is_alive()
            slow_storage.resume()
            rescue.cancel()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            while len(received) < SIZE:
                received += await stream.receive_some()
    assert received == content()


async def test_a_file_that_can_not_be_read_is_an_input_output_error(slow_storage: SlowStorage) -> None:
    before = descriptors()
    with pytest.raises(CommandError) as failure:
        await read(slow_storage.broken)
    assert failure.value.code == errno.EIO
    assert descriptors() == before


async def test_a_file_that_can_not_be_read_any_more_is_sent_as_zeros_and_not_counted(
    slow_storage: SlowStorage,
) -> None:
    """Its pages were there when it was opened, and are gone. Closing it fails, too."""
    reply = _reply(FileRange(os.open(slow_storage.broken, os.O_RDONLY), 0, SIZE))
    ours, theirs = socket.socketpair()
    decoder, frames = FrameDecoder(), list[Frame]()
    with closing(SocketTransport(ours)) as transport, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FrameWriter(transport).write_file, MessageType.MmapReadFileResponse, "t", reply)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            while not frames:
                frames += decoder.feed(await stream.receive_some())
    reply.file.close()
    message = arcbox_v1.MmapReadFileResponse.FromString(frames[0].payload)
    assert (message.data, message.bytes_read) == (bytes(SIZE), 0)
