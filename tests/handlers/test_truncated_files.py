"""MmapReadFile of a file that is truncated while its reply waits in a real socket, for a peer that does not read.

To touch a page which is gone would end this process by SIGBUS: that it lives is what all of these tests show.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from mmap import PAGESIZE
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.transport import SocketTransport
from arcbox_agent.writer import FrameWriter
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Context, FileReply
from arcbox_handlers.files import MmapReadFile
from arcbox_protocol import Frame, FrameDecoder, MessageType, arcbox_v1

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
SIZE = 8 * MIB + 1234
CONTENT = os.urandom(SIZE)


async def read_truncated(
    path: Path, new_size: int, *, at_once: bool, offset: int = 0
) -> arcbox_v1.MmapReadFileResponse:
    """The response to a read of all from `offset`, when the file gets a new size while it is sent, or before."""
    path.write_bytes(CONTENT)  # noqa: ASYNC240  a test's own file
    request = arcbox_v1.MmapReadFileRequest(path=str(path), offset=offset, length=64 * MIB)
    reply = await MmapReadFile(request)(Context(guest=fake_guest(), version="0"))
    assert isinstance(reply, FileReply)
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours)
    decoder, frames = FrameDecoder(100 * MIB), list[Frame]()

    async def write() -> None:
        await FrameWriter(transport).write_file(MessageType.MmapReadFileResponse, "t", reply)
        await transport.send_eof()

    with closing(transport), closing(reply.file):
        if at_once:
            os.truncate(path, new_size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            os.truncate(path, new_size)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream:
                async for data in stream:
                    frames += decoder.feed(data)
    (frame,) = frames
    assert not decoder.has_partial
    return arcbox_v1.MmapReadFileResponse.FromString(frame.payload)


NEW_SIZES = [0, 1, 100_001, MIB + 77, 5 * MIB, 5 * MIB + 77, SIZE - PAGESIZE, SIZE - 1000, SIZE - 1]


@pytest.mark.parametrize("new_size", NEW_SIZES)
async def test_what_is_left_is_sent_and_counted_and_zeros_fill_the_frame(tmp_path: Path, new_size: int) -> None:
    response = await read_truncated(tmp_path / "file", new_size, at_once=True)
    assert response.bytes_read == new_size
    assert response.data == CONTENT[:new_size] + bytes(SIZE - new_size)


@pytest.mark.parametrize("new_size", NEW_SIZES)
async def test_what_is_cut_off_while_it_is_on_its_way_is_not_counted(tmp_path: Path, new_size: int) -> None:
    """Of what was sent before, whole pages still arrive as they were, and others as zeros."""
    response = await read_truncated(tmp_path / "file", new_size, at_once=False)
    assert response.bytes_read == new_size
    assert len(response.data) == SIZE
    assert response.data[:new_size] == CONTENT[:new_size]
    later = max(new_size, 4 * MIB)  # more than a socket takes that nobody reads from
    assert not any(response.data[later:])


async def test_a_part_whose_file_ends_before_it_by_now_is_all_zeros(tmp_path: Path) -> None:
    response = await read_truncated(tmp_path / "file", MIB, at_once=True, offset=2 * MIB)
    assert response.bytes_read == 0
    assert response.data == bytes(SIZE - 2 * MIB)


async def test_a_truncation_inside_of_the_last_page_is_counted_to_the_byte(tmp_path: Path) -> None:
    response = await read_truncated(tmp_path / "file", SIZE - 100, at_once=True, offset=SIZE - 200)
    assert response.bytes_read == 100
    assert response.data == CONTENT[-200:-100] + bytes(100)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_file_that_grows_meanwhile_is_what_it_was(tmp_path: Path, *, at_once: bool) -> None:
    response = await read_truncated(tmp_path / "file", SIZE + 10_000, at_once=at_once)
    assert response.bytes_read == SIZE
    assert response.data == CONTENT
