"""What MmapReadFile answers: data, its exact bytes on the wire, and errno as codes."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcbox_guest.files import FileRange
from arcbox_guest.testing import fake_guest
from arcbox_handlers import CommandError, Context, FileReply, error_reply
from arcbox_handlers.files import MmapReadFile, _reply
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 2**20
LIMIT = 64 * MIB
U64_MAX = 2**64 - 1
CONTENT = os.urandom(100_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


async def call(path: Path | str, offset: int = 0, length: int = MIB) -> arcbox_v1.MmapReadFileResponse | FileReply:
    request = arcbox_v1.MmapReadFileRequest(path=str(path), offset=offset, length=length)
    return await MmapReadFile(request)(Context(guest=fake_guest(), version="0"))


def payload_of(reply: FileReply) -> bytes:
    """What a reply sends to a peer."""
    data = os.pread(reply.file.descriptor, reply.file.length, reply.file.offset)
    return reply.head + data + reply.tail(len(data))


async def read(path: Path | str, offset: int = 0, length: int = MIB) -> bytes:
    """The data of a response that says how much it has."""
    reply = await call(path, offset, length)
    if isinstance(reply, FileReply):
        with closing(reply.file):
            payload = payload_of(reply)
        assert len(payload) == reply.size
        reply = arcbox_v1.MmapReadFileResponse.FromString(payload)
    assert reply.bytes_read == len(reply.data)
    return reply.data


async def refused(path: Path | str, offset: int = 0, length: int = MIB) -> int:
    """The code of the Error."""
    with pytest.raises(CommandError) as failure:
        await call(path, offset, length)
    reply = error_reply(failure.value)
    assert reply is not None
    assert reply.message
    return reply.code


async def test_a_file_is_read_whole(file: Path) -> None:
    assert await read(file) == CONTENT


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (1, 4096), (4095, 2), (4096, 4096), (99_999, 1), (7, 90_000)])
async def test_a_part_of_a_file_is_read(file: Path, offset: int, length: int) -> None:
    assert await read(file, offset, length) == CONTENT[offset : offset + length]


async def test_a_read_past_the_end_is_short(file: Path) -> None:
    assert await read(file, 99_990, 11) == CONTENT[-10:]


@pytest.mark.parametrize("offset", [100_000, 100_001, 2**63 - 1, 2**63, U64_MAX])
async def test_a_read_from_the_end_or_after_it_is_empty(file: Path, offset: int) -> None:
    assert await call(file, offset, LIMIT) == arcbox_v1.MmapReadFileResponse()


async def test_a_read_of_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert await read(tmp_path / "empty") == b""


async def test_64_mib_may_be_read_and_a_byte_more_not(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as large:
        large.truncate(LIMIT + 1)
    data = await read(path, 0, LIMIT)
    assert len(data) == LIMIT
    assert await refused(path, 0, LIMIT + 1) == errno.EINVAL


# The order of the checks.


@pytest.mark.parametrize("path", ["/missing", "/", "/dev/null", "\0", ""])
async def test_length_0_is_empty_data_whatever_the_path_is(path: str) -> None:
    reply = await call(path, U64_MAX, 0)
    assert reply == arcbox_v1.MmapReadFileResponse()


@pytest.mark.parametrize("length", [LIMIT + 1, U64_MAX])
@pytest.mark.parametrize("path", ["/missing", "/", "/dev/null", "\0", ""])
async def test_a_length_over_64_mib_is_einval_whatever_the_path_is(path: str, length: int) -> None:
    assert await refused(path, 0, length) == errno.EINVAL


@pytest.mark.parametrize("offset", [0, U64_MAX])
async def test_the_path_is_checked_whatever_the_offset_is(tmp_path: Path, offset: int) -> None:
    assert await refused(tmp_path / "missing", offset) == errno.ENOENT
    assert await refused(tmp_path, offset) == errno.EISDIR


# Errors.


async def test_errors_of_open_have_their_errno(file: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert await refused(tmp_path / "missing") == 2
    assert await refused(file / "below") == 20
    assert await refused(tmp_path / ("n" * 256)) == 36
    assert await refused(tmp_path / "loop") == 40
    assert await refused("") == 2
    assert await refused("/etc/\0passwd") == 22


async def test_a_directory_is_21(tmp_path: Path) -> None:
    assert await refused(tmp_path) == 21


async def test_a_fifo_is_22_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert await refused(tmp_path / "fifo") == 22


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty"])
async def test_a_device_is_22(device: str) -> None:
    assert await refused(device) == 22


async def test_an_error_names_what_went_wrong_and_the_path(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as failure:
        await call(tmp_path / "missing")
    assert str(failure.value) == f"No such file or directory: {tmp_path / 'missing'}"


async def test_an_error_does_not_send_back_megabytes_of_path() -> None:
    with pytest.raises(CommandError) as failure:
        await call("/" + "x" * MIB)
    assert failure.value.code == errno.ENAMETOOLONG
    assert len(str(failure.value)) < 5000


async def test_an_error_without_a_number_is_an_input_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_arguments: object) -> FileRange:
        await trio.lowlevel.checkpoint()
        raise OSError("strange")

    monkeypatch.setattr("arcbox_guest.files.Files.open_range", fail)
    assert await refused("/etc/passwd") == errno.EIO


# The reply's bytes.


@pytest.fixture(scope="module")
def zeros() -> Iterator[FileRange]:
    """64 MiB of a file, all of it holes."""
    with tempfile.TemporaryFile() as sparse:
        sparse.truncate(LIMIT)
        whole = FileRange(os.dup(sparse.fileno()), 0, LIMIT)
    with closing(whole):
        yield whole


SIZES = st.integers(1, 2**16) | st.integers(1, LIMIT) | st.sampled_from([2**7, 2**14, 2**21, LIMIT])


@settings(deadline=None)
@given(length=SIZES, lost=st.just(0) | SIZES)
@example(length=127, lost=0)
@example(length=128, lost=127)
@example(length=16_383, lost=0)
@example(length=16_384, lost=16_384)
@example(length=2**21 - 1, lost=1)
@example(length=2**21, lost=1)
@example(length=LIMIT, lost=LIMIT)
def test_every_reply_is_a_message_of_the_size_that_it_announced(zeros: FileRange, length: int, lost: int) -> None:
    sent = max(0, length - lost)
    with closing(FileRange(os.dup(zeros.descriptor), 0, length)) as file:
        reply = _reply(file)
        tail = reply.tail(sent)
        assert reply.size == len(reply.head) + length + len(tail)
    message = arcbox_v1.MmapReadFileResponse.FromString(reply.head + bytes(length) + tail)
    assert len(message.data) == length
    assert message.bytes_read == sent


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 70_000])
async def test_a_whole_reply_is_byte_for_byte_what_protobuf_makes(file: Path, size: int) -> None:
    reply = await call(file, 5, size)
    assert isinstance(reply, FileReply)
    with closing(reply.file):
        canonical = arcbox_v1.MmapReadFileResponse(data=CONTENT[5 : 5 + size], bytes_read=size)
        assert payload_of(reply) == canonical.SerializeToString()


@pytest.mark.parametrize(("new_size", "sent", "bytes_read"), [(50, 90, 40), (50, 20, 20), (10, 90, 0), (0, 90, 0)])
async def test_what_was_sent_and_is_cut_off_by_now_is_not_counted(
    file: Path, new_size: int, sent: int, bytes_read: int
) -> None:
    """The peer may get it as zeros: it was sent as pages of the file, which the cut clears."""
    reply = await call(file, 10, 100)
    assert isinstance(reply, FileReply)
    with closing(reply.file):
        os.truncate(file, new_size)
        message = arcbox_v1.MmapReadFileResponse.FromString(reply.tail(sent))
    assert message.bytes_read == bytes_read
