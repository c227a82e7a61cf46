"""Files that are in memory need no thread: real files, and threads that nobody may have."""

from __future__ import annotations

import errno
import os
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest import cached_files, page_cache
from arcbox_guest.cached_files import CachedFiles
from arcbox_guest.files import Files

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def threads() -> trio.CapacityLimiter:
    return trio.CapacityLimiter(1)


@pytest.fixture
def files(threads: trio.CapacityLimiter) -> Files:
    return Files(limiter=threads)


async def read(files: Files, path: Path, offset: int = 0, length: int = len(CONTENT)) -> bytes | None:
    part = files.open_cached(str(path), offset, length) or await files.open_range(str(path), offset, length)
    if part is None:
        return None
    with closing(part):
        return os.pread(part.descriptor, part.length, part.offset)


def descriptors() -> list[str]:
    return sorted(link.name for link in Path("/proc/self/fd").iterdir())


async def takes_thread(files: Files, threads: trio.CapacityLimiter, path: Path, length: int = len(CONTENT)) -> bool:
    """Whether reading the file waits while there is no thread to be had."""
    threads.acquire_on_behalf_of_nowait(threads)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, files, path, 0, length)
            await wait_all_tasks_blocked()
            waits = bool(nursery.child_tasks)
            nursery.cancel_scope.cancel()
    finally:
        threads.release_on_behalf_of(threads)
    return waits


async def test_a_file_system_is_learned_in_a_thread_and_needs_none_from_then_on(
    files: Files, threads: trio.CapacityLimiter, file: Path
) -> None:
    other = file.with_name("other")
    other.write_bytes(b"other")
    assert await takes_thread(files, threads, file)
    assert await read(files, file) == CONTENT
    assert not await takes_thread(files, threads, file)
    assert not await takes_thread(files, threads, other)


async def test_what_is_read_without_a_thread_is_the_same(files: Files, file: Path) -> None:
    for _ in ("with", "without"):
        assert await read(files, file) == CONTENT
        assert await read(files, file, 1000, 24) == CONTENT[1000:1024]
        assert await read(files, file, len(CONTENT) - 1, 1000) == CONTENT[-1:]
        assert await read(files, file, len(CONTENT)) is None
        assert await read(files, file, 2**64 - 1) is None


async def test_pages_that_are_not_in_memory_take_a_thread(
    files: Files, threads: trio.CapacityLimiter, file: Path
) -> None:
    await read(files, file)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if page_cache.is_resident(opened.fileno(), 0, len(CONTENT)):
            pytest.skip("the temporary directory is on a file system that keeps all in memory")
    assert await takes_thread(files, threads, file)
    assert await read(files, file) == CONTENT
    assert not await takes_thread(files, threads, file)


async def test_a_part_of_which_one_page_is_in_memory_takes_a_thread_too(
    files: Files, threads: trio.CapacityLimiter, file: Path
) -> None:
    await read(files, file)
    with file.open("rb", buffering=0) as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if page_cache.is_resident(opened.fileno(), 0, len(CONTENT)):
            pytest.skip("the temporary directory is on a file system that keeps all in memory")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no page is read ahead
        opened.read(1)
    assert not await takes_thread(files, threads, file, 1)
    assert await takes_thread(files, threads, file)


async def test_much_is_read_in_a_thread_for_it_takes_long_to_ask_for(
    files: Files, threads: trio.CapacityLimiter, file: Path
) -> None:
    await read(files, file)
    assert not await takes_thread(files, threads, file, 4 * 1024 * 1024)
    assert await takes_thread(files, threads, file, 4 * 1024 * 1024 + 1)


async def test_a_file_that_was_replaced_is_read_anew(files: Files, file: Path) -> None:
    await read(files, file)
    successor = file.with_name("successor")
    successor.write_bytes(b"new")
    successor.rename(file)
    assert await read(files, file) == b"new"


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("gone", errno.ENOENT, "No such file or directory"),
        (".", errno.EISDIR, "Is a directory"),
        ("fifo", errno.EINVAL, "Not a regular file"),
        ("a\0b", errno.EINVAL, "null byte"),
    ],
)
async def test_errors_are_the_same_on_a_file_system_that_is_known(
    files: Files, file: Path, name: str, code: int, message: str
) -> None:
    os.mkfifo(file.with_name("fifo"))
    file.with_name("a").write_bytes(b"not asked for")
    for _ in ("with", "without"):
        with pytest.raises(OSError, match=message) as failure:
            await read(files, file.parent / name, 0, 10)
        assert failure.value.errno == code
        await read(files, file)


async def test_a_file_system_that_is_not_on_a_disk_of_its_own_always_takes_a_thread(
    files: Files, threads: trio.CapacityLimiter
) -> None:
    path = Path("/sys/kernel/notes")  # any regular file outside of the local file systems
    for _ in range(2):
        with suppress(OSError):  # it can't be mapped: it is not the reading that counts here
            await read(files, path)
        assert await takes_thread(files, threads, path)


async def test_a_kernel_that_can_not_tell_mounts_apart_for_good_always_gets_a_thread(
    files: Files, threads: trio.CapacityLimiter, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_files, "_STATX_MNT_ID_UNIQUE", 0x8000_0000)  # as Linux before 6.8: a bit nobody knows
    assert await read(files, file) == CONTENT
    assert await takes_thread(files, threads, file)


async def test_a_cancelled_caller_leaves_no_descriptor(files: Files, file: Path) -> None:
    await read(files, file)
    before = descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await files.open_range(str(file), 0, 10)
    assert descriptors() == before


def test_mounts_are_forgotten_before_they_are_too_many(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_files, "_MOST_MOUNTS", 1)
    cached = CachedFiles()
    for path in (file, Path("/proc/self/status"), file):
        with path.open("rb") as opened:
            assert cached.learn(opened.fileno()) == (path == file)
    opened_file = cached.open(bytes(file))
    assert opened_file is not None
    os.close(opened_file.descriptor)
