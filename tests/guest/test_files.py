"""Which part of which file is opened, and which files are not."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcbox_guest.cached_files import CachedFiles
from arcbox_guest.files import FileRange, open_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT = os.urandom(3 * PAGESIZE + 100)
U64_MAX = 2**64 - 1
IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK

SIZES = st.integers(0, len(CONTENT) + PAGESIZE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def read(path: Path | str, offset: int = 0, length: int = 2**20) -> bytes:
    """The bytes of a range."""
    file = open_range(str(path), offset, length, CachedFiles())
    if file is None:
        return b""
    with closing(file):
        data = os.pread(file.descriptor, file.length, file.offset)
    assert len(data) == file.length > 0
    return data


def refused(path: Path | str) -> int | None:
    """The errno of a path that can't be opened."""
    try:
        file = open_range(str(path), 0, 100, CachedFiles())
    except OSError as error:
        return error.errno
    pytest.fail(f"it was opened: {file}")


def descriptors() -> set[Path]:
    """All that this process has open, without what listing them takes."""
    return {link for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()}


def test_a_whole_file_is_opened(file: Path) -> None:
    assert read(file) == CONTENT


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=SIZES, length=SIZES)
def test_any_range_is_cut_short_where_the_file_ends(file: Path, offset: int, length: int) -> None:
    assert read(file, offset, length) == CONTENT[offset : offset + length]


@pytest.mark.parametrize("offset", [len(CONTENT), len(CONTENT) + 1, 2**63 - 1, 2**63, U64_MAX])
def test_a_range_that_begins_at_the_end_or_after_it_is_empty(file: Path, offset: int) -> None:
    assert read(file, offset, 1) == b""


def test_the_largest_length_is_cut_short_too(file: Path) -> None:
    assert read(file, 1, U64_MAX) == CONTENT[1:]


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read(tmp_path / "empty") == b""


def test_a_file_of_proc_says_that_it_is_empty() -> None:
    assert read("/proc/self/status") == b""


def test_a_file_of_sys_can_not_be_mapped() -> None:
    assert refused("/sys/kernel/mm/transparent_hugepage/enabled") == errno.ENODEV


@pytest.fixture
def unmappable(tmp_path: Path) -> Iterator[Path]:
    """A file, with `CONTENT` in hexadecimal, of a file system without mappings."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse, and root")
    directory = tmp_path / "direct"
    directory.mkdir()
    program = Path(__file__).with_name("direct_io_file_system.py")
    command = [sys.executable, str(program), str(directory), CONTENT.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603  ours
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if said != "mounted\n":
                pytest.skip(f"FUSE can't be mounted here: {said}")
            yield directory / "file"
        finally:
            subprocess.run(["umount", "--lazy", directory], check=False)  # noqa: S603, S607  what is mounted above
            server.kill()


def test_a_file_that_can_not_be_mapped_is_read_all_the_same(unmappable: Path) -> None:
    with unmappable.open("rb") as file, pytest.raises(OSError, match="No such device"):
        mmap(file.fileno(), 1, MAP_SHARED, PROT_READ)
    assert read(unmappable) == CONTENT.hex().encode()
    assert read(unmappable, 5, 7) == CONTENT.hex().encode()[5:12]


def test_a_sparse_file_is_zeros_where_it_has_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as sparse:
        sparse.truncate(2**40)
    assert read(path, 2**40 - 10, 100) == bytes(10)


def test_a_symbolic_link_to_a_file_is_that_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    assert read(tmp_path / "link") == CONTENT


# What can't be read.


def test_a_path_that_leads_nowhere_has_its_own_errno(file: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "missing") == errno.ENOENT
    assert refused(tmp_path / "dangling") == errno.ENOENT
    assert refused("") == errno.ENOENT
    assert refused(tmp_path / "loop") == errno.ELOOP
    assert refused(file / "below") == errno.ENOTDIR
    assert refused(f"{file}/") == errno.ENOTDIR
    assert refused(tmp_path / ("n" * 256)) == errno.ENAMETOOLONG
    assert refused("/" + "d/" * 2048) == errno.ENAMETOOLONG


def test_a_path_with_a_null_byte_is_no_path() -> None:
    assert refused("/etc/\0passwd") == errno.EINVAL


def test_a_directory_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    assert refused(tmp_path) == errno.EISDIR
    assert refused(tmp_path / "link") == errno.EISDIR


def as_nobody(call: Callable[[], int | None]) -> int | None:
    """What a call returns in a thread that has nobody's rights to files."""
    outcome: list[int | None] = []

    def run() -> None:
        ctypes.CDLL(None).setfsuid(65534)  # of this thread alone, and for root its capabilities over files with it
        outcome.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_a_file_or_a_directory_that_may_not_be_read_is_eacces() -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "file"
        file.write_bytes(CONTENT)
        file.chmod(0)
        directory.chmod(0o755)
        assert as_nobody(lambda: refused(file)) == errno.EACCES
        file.chmod(0o644)
        assert as_nobody(lambda: len(read(file))) == len(CONTENT)
        directory.chmod(0o700)
        assert as_nobody(lambda: refused(file)) == errno.EACCES


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], bool]]:
    """Whether anything in the temporary directory has been opened: inotify(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(IN_NONBLOCK)
    assert libc.inotify_add_watch(watch, bytes(tmp_path), IN_OPEN) > 0

    def ask() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    yield ask
    os.close(watch)


def test_a_regular_file_is_opened(file: Path, opened: Callable[[], bool]) -> None:
    """What the tests below rely on."""
    assert not opened()
    read(file)
    assert opened()


def test_a_fifo_is_refused_unopened(tmp_path: Path, opened: Callable[[], bool]) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == errno.EINVAL
    assert not opened()


def test_a_socket_is_refused_unopened(tmp_path: Path, opened: Callable[[], bool]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert refused(tmp_path / "socket") == errno.EINVAL
        assert not opened()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/tty"])
def test_a_device_is_refused_whatever_opening_it_would_say(device: str) -> None:
    assert refused(device) == errno.EINVAL


def test_a_path_is_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    path = tmp_path / "größe"
    path.write_bytes(b"found")
    script = """if True:
        import sys
        from arcbox_guest.cached_files import CachedFiles
        from arcbox_guest.files import FileRange, open_range
        print(open_range(eval(sys.argv[1]), 0, 9, CachedFiles()).length)"""
    old_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script, ascii(str(path))]
    done = subprocess.run(command, env=old_locale, check=True, capture_output=True)  # noqa: S603  our own script
    assert done.stdout == b"5\n"


# Descriptors.


def test_an_open_range_is_one_descriptor_for_reading_alone(file: Path) -> None:
    before = descriptors()
    opened = open_range(str(file), 0, 10, CachedFiles())
    assert opened is not None
    assert descriptors() - before == {Path(f"/proc/self/fd/{opened.descriptor}")}
    assert fcntl.fcntl(opened.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert not os.get_inheritable(opened.descriptor)
    opened.close()
    assert descriptors() == before


def test_closing_again_does_nothing_to_whoever_has_the_number_now(file: Path) -> None:
    opened = open_range(str(file), 0, 10, CachedFiles())
    assert opened is not None
    number = opened.descriptor
    opened.close()
    with file.open("rb") as other:
        assert other.fileno() == number
        opened.close()
        assert other.read() == CONTENT


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("local", [True, False])
async def test_a_range_is_sent_as_the_socket_takes_it_copied_or_not(
    tmp_path: Path, *, copied: bool, local: bool
) -> None:
    data = os.urandom(1_000_000)
    path = tmp_path / "sent"
    path.write_bytes(b"before" + data + b"behind")
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(FileRange(os.open(path, os.O_RDONLY), 6, len(data), local=local)) as part:
        ours.setblocking(False)
        received = b""
        while len(received) < len(data):
            count = await part.send(ours.fileno(), len(received), copied=copied)
            received += theirs.recv(count, socket.MSG_WAITALL)
        assert received == data
        assert await part.send(ours.fileno(), len(data), copied=copied) == 0


def test_a_range_that_nobody_took_is_closed(file: Path) -> None:
    before = descriptors()
    assert open_range(str(file), 0, 10, CachedFiles()) is not None
    assert descriptors() == before


def test_no_descriptor_is_left_behind_by_what_is_refused_or_empty(file: Path, tmp_path: Path) -> None:
    before = descriptors()
    assert refused(tmp_path) == errno.EISDIR
    assert refused("/dev/null") == errno.EINVAL
    assert refused("/sys/kernel/mm/transparent_hugepage/enabled") == errno.ENODEV
    assert read(file, 10**9) == b""
    assert read(file) == CONTENT
    assert descriptors() == before
