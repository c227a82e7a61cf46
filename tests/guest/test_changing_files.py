"""Files that change while they are opened, can't be read, or come slowly; and which of them wait for storage.

The files change for real: what the kernel says of them is the kernel's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from contextlib import closing
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest import files, page_cache
from arcbox_guest.cached_files import CachedFiles
from arcbox_guest.files import FileRange, Files, open_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT = os.urandom(3 * PAGESIZE + 100)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def opened(path: Path, offset: int = 0, length: int = 2**20) -> tuple[int, int] | None:
    """Where an open range begins, and its length."""
    file = open_range(str(path), offset, length, CachedFiles())
    if file is None:
        return None
    with closing(file):
        return file.offset, file.length


def refused(path: Path) -> int | None:
    """The errno of a file that can't be opened."""
    with pytest.raises(OSError, match=r".") as failure:
        open_range(str(path), 0, 100, CachedFiles())
    return failure.value.errno


def when_it_is_mapped(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something just before the file is mapped."""

    def act_and_map(descriptor: int, length: int, flags: int, protection: int, *, offset: int) -> mmap:
        act()
        return mmap(descriptor, length, flags, protection, offset=offset)

    monkeypatch.setattr(page_cache, "mmap", act_and_map)


def when_it_is_populated(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let nothing be resident, and do something just before the pages are read in."""
    populate = page_cache._populate

    def act_and_populate(mapping: mmap) -> int:
        act()
        return populate(mapping)

    monkeypatch.setattr(page_cache, "_all_cached", lambda _mapping: False)
    monkeypatch.setattr(page_cache, "_populate", act_and_populate)


def when_populating_fails(monkeypatch: pytest.MonkeyPatch, failure: int) -> None:
    """Let nothing be resident, and let madvise(2) fail."""
    monkeypatch.setattr(page_cache, "_all_cached", lambda _mapping: False)
    monkeypatch.setattr(page_cache, "_populate", lambda _mapping: failure)


# What changes.


@pytest.mark.parametrize("moment", [when_it_is_mapped, when_it_is_populated])
@pytest.mark.parametrize(
    ("new_size", "expected"), [(2 * PAGESIZE, (10, 2 * PAGESIZE - 10)), (100, (10, 90)), (10, None), (0, None)]
)
def test_a_file_that_is_cut_short_meanwhile_is_opened_as_short(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[[pytest.MonkeyPatch, Callable[[], object]], None],
    new_size: int,
    expected: tuple[int, int] | None,
) -> None:
    moment(monkeypatch, lambda: os.truncate(file, new_size))
    assert opened(file, 10) == expected


def test_a_file_that_is_cut_short_again_and_again_is_as_short_as_it_is_at_last(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([3 * PAGESIZE, 2 * PAGESIZE, PAGESIZE, 50])
    when_it_is_mapped(monkeypatch, lambda: os.truncate(file, next(sizes, 50)))
    assert opened(file, 10) == (10, 40)


@pytest.mark.parametrize("moment", [when_it_is_mapped, when_it_is_populated])
def test_a_file_that_is_written_anew_meanwhile_is_no_error(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[[pytest.MonkeyPatch, Callable[[], object]], None],
) -> None:
    def grow_again(descriptor: int) -> os.stat_result:
        if os.path.getsize(file) == 0:  # noqa: PTH202  Path.stat calls os.stat, as fstat does
            file.write_bytes(CONTENT)
        return fstat(descriptor)

    fstat = os.fstat
    moment(monkeypatch, lambda: os.truncate(file, 0))
    monkeypatch.setattr(os, "fstat", grow_again)
    assert opened(file, 10) == (10, len(CONTENT) - 10)


def test_a_file_that_grows_meanwhile_is_opened_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    when_it_is_mapped(monkeypatch, lambda: os.truncate(file, 2**20))
    assert opened(file, 10) == (10, len(CONTENT) - 10)


@pytest.mark.parametrize(
    ("new_size", "left"),
    [
        (len(CONTENT) + 1, 2 * PAGESIZE),
        (len(CONTENT), 2 * PAGESIZE),
        (5 + 2 * PAGESIZE, 2 * PAGESIZE),
        (5 + 2 * PAGESIZE - 1, 2 * PAGESIZE - 1),
        (6, 1),
        (5, 0),
        (0, 0),
    ],
)
def test_an_open_range_knows_how_much_of_it_is_left(file: Path, new_size: int, left: int) -> None:
    part = open_range(str(file), 5, 2 * PAGESIZE, CachedFiles())
    assert part is not None
    with closing(part):
        os.truncate(file, new_size)
        assert part.left() == left


def test_nothing_is_left_of_a_file_that_is_out_of_reach(file: Path) -> None:
    part = open_range(str(file), 5, 10, CachedFiles())
    assert part is not None
    part.close()
    assert part.left() == 0


# What can't be read.


@pytest.mark.parametrize("failure", [errno.ENOMEM, 133])  # 133 is EHWPOISON: a page on broken memory
def test_any_other_failure_is_the_kernels_own(file: Path, monkeypatch: pytest.MonkeyPatch, failure: int) -> None:
    when_populating_fails(monkeypatch, failure)
    assert refused(file) == failure


def test_pages_that_can_not_be_read_have_the_errno_that_reading_them_has(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int, _buffers: object, _offset: int) -> int:
        raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN))

    when_populating_fails(monkeypatch, errno.EFAULT)
    monkeypatch.setattr(os, "preadv", fail)
    assert refused(file) == errno.EUCLEAN


def test_a_kernel_before_5_14_reads_the_range_instead_and_no_more(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = os_preadv(descriptor, buffers, offset)
        read.append((offset, count))
        return count

    os_preadv, read = os.preadv, list[tuple[int, int]]()
    when_populating_fails(monkeypatch, errno.EINVAL)
    monkeypatch.setattr(page_cache, "_READ_AHEAD", 1000)
    monkeypatch.setattr(os, "preadv", preadv)
    assert opened(file, 10, 2500) == (10, 2500)
    assert read == [(10, 1000), (1010, 1000), (2010, 500)]


def test_a_file_that_is_cut_short_while_it_is_read_instead_is_opened_as_short(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truncate_and_refuse(_mapping: mmap) -> int:
        os.truncate(file, 100)
        return errno.EINVAL

    monkeypatch.setattr(page_cache, "_all_cached", lambda _mapping: False)
    monkeypatch.setattr(page_cache, "_populate", truncate_and_refuse)
    assert opened(file, 10) == (10, 90)


# The page cache.


@pytest.fixture
def cold_file() -> Iterator[Path]:
    """A file that anybody may read, and that is on its disk and nowhere else."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "file"
        path.write_bytes(CONTENT)
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if any(are_resident(path)):
            pytest.skip("the temporary directory is on a file system that keeps all in memory")
        yield path


def are_resident(path: Path) -> list[bool]:
    """Whether the page cache has them, for each page of a file."""
    with path.open("rb") as file, mmap(file.fileno(), 0, MAP_SHARED, PROT_READ) as mapping:
        address, size = page_cache._location(mapping)
        pages = (ctypes.c_ubyte * -(-size // PAGESIZE))()
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), pages) == 0
        return [bool(page & 1) for page in pages]


@pytest.fixture
def populated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the mappings that were read in."""
    populate, sizes = page_cache._populate, list[int]()

    def note_and_populate(mapping: mmap) -> int:
        sizes.append(len(mapping))
        return populate(mapping)

    monkeypatch.setattr(page_cache, "_populate", note_and_populate)
    return sizes


def test_what_is_not_in_the_page_cache_is_there_once_it_is_opened(cold_file: Path, populated: list[int]) -> None:
    assert opened(cold_file) == (0, len(CONTENT))
    assert populated == [len(CONTENT)]
    assert are_resident(cold_file) == [True] * 4


def test_without_madvise_it_is_there_too(cold_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    when_populating_fails(monkeypatch, errno.EINVAL)
    assert opened(cold_file) == (0, len(CONTENT))
    monkeypatch.undo()
    assert are_resident(cold_file) == [True] * 4


def test_a_file_is_mapped_to_be_shared_and_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> None:
        maps = Path("/proc/self/maps").read_text().splitlines()
        permissions.extend(line.split()[1] for line in maps if line.endswith(str(file)))

    permissions: list[str] = []
    when_it_is_populated(monkeypatch, look)
    assert opened(file) == (0, len(CONTENT))
    assert permissions == ["r--s"]
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_what_is_in_the_page_cache_is_not_mapped_for_nothing(file: Path, populated: list[int]) -> None:
    assert are_resident(file) == [True] * 4
    assert opened(file, PAGESIZE + 1, 10) == (PAGESIZE + 1, 10)
    assert populated == []


@pytest.mark.parametrize("missing", [0, 1])
def test_one_missing_page_is_enough_to_read_the_range_in(tmp_path: Path, populated: list[int], missing: int) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as sparse:
        sparse.truncate(2 * PAGESIZE)
        sparse.seek((1 - missing) * PAGESIZE)
        sparse.write(b"x")
    assert are_resident(path) == [page != missing for page in (0, 1)]
    assert opened(path, PAGESIZE - 1, 2) == (PAGESIZE - 1, 2)
    assert populated == [PAGESIZE + 1]


def as_nobody(call: Callable[[], object]) -> None:
    """Call it in a thread that has nobody's rights to files."""

    def run() -> None:
        ctypes.CDLL(None).setfsuid(65534)  # of this thread alone, and for root its capabilities over files with it
        call()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_who_may_not_write_a_file_reads_it_in_whatever_mincore_says(cold_file: Path, populated: list[int]) -> None:
    """To them the kernel does not tell what is in its cache."""
    claims: list[list[bool]] = []
    as_nobody(lambda: claims.append(are_resident(cold_file)))
    assert claims == [[True] * 4]
    as_nobody(lambda: opened(cold_file))
    assert populated == [len(CONTENT)]
    assert are_resident(cold_file) == [True] * 4


# Threads.


class SlowPages:
    """Pages that come when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.come, self.are_there = trio.Event(), threading.Event(), threading.Event()
        self._token = trio.lowlevel.current_trio_token()
        monkeypatch.setattr(page_cache, "_all_cached", lambda _mapping: False)
        monkeypatch.setattr(page_cache, "_populate", self._populate)

    def _populate(self, _mapping: mmap) -> int:
        self._token.run_sync_soon(self.begun.set)
        assert self.come.wait(30)
        self.are_there.set()
        return 0


async def test_files_are_opened_in_a_thread_that_nobody_else_waits_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, parts = SlowPages(monkeypatch), list[FileRange | None]()

    async def open_slowly() -> None:
        parts.append(await Files().open_range(str(file), 10, 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_slowly)
        await slow.begun.wait()
        assert parts == []
        slow.come.set()
    (part,) = parts
    assert part is not None
    with closing(part):
        assert os.pread(part.descriptor, part.length, part.offset) == CONTENT[10:30]


def is_open(path: Path) -> bool:
    return str(path) in [str(link.readlink()) for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()]


def when_it_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Set by the thread that closes the last descriptor of a file."""
    closed, close, token = trio.Event(), files._close, trio.lowlevel.current_trio_token()

    def close_and_look(descriptor: int) -> None:
        close(descriptor)
        if not is_open(path):
            token.run_sync_soon(closed.set)

    monkeypatch.setattr(files, "_close", close_and_look)
    return closed


async def test_a_cancelled_caller_does_not_wait_and_what_was_opened_is_closed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, closed = SlowPages(monkeypatch), when_it_is_closed(file, monkeypatch)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Files().open_range, str(file), 0, 10)
            await slow.begun.wait()
            nursery.cancel_scope.cancel()
        assert not slow.are_there.is_set()
        assert is_open(file)
    finally:
        slow.come.set()
    await closed.wait()
    assert slow.are_there.is_set()
