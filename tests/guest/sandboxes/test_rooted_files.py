"""Files below a root: what is done to them, and that nothing outside is touched whatever lies in there."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from arcbox_guest.sandboxes import rooted_files
from arcbox_guest.sandboxes.rooted_files import FileKind, NewFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OUTSIDE = "outside"
"""A directory beside the root, with a file `secret`."""


@pytest.fixture
def top(in_memory: Path) -> Path:
    (in_memory / OUTSIDE).mkdir()
    (in_memory / OUTSIDE / "secret").write_text("secret")
    top = in_memory / "root"
    top.mkdir()
    return top


@pytest.fixture
def root(top: Path) -> Iterator[int]:
    root = os.open(top, os.O_PATH | os.O_DIRECTORY)
    yield root
    os.close(root)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def read(root: int, path: str) -> bytes:
    buffer = memoryview(bytearray(100))
    return bytes(buffer[: rooted_files.open_file(root, path).read_into(buffer)])


def write(root: int, path: str, data: bytes, mode: int = 0o640) -> None:
    file = NewFile.create(root, path)
    file.write([memoryview(data)])
    file.commit(mode)


def test_a_file_that_was_written_is_read(top: Path, root: int) -> None:
    write(root, "/new", b"data")
    assert read(root, "/new") == b"data"
    assert stat.S_IMODE((top / "new").stat().st_mode) == 0o640
    assert names(top) == ["new"]


def test_a_file_is_replaced_only_by_commit(top: Path, root: int) -> None:
    (top / "old").write_text("old")
    file = NewFile.create(root, "/old")
    file.write([memoryview(b"new")])
    assert (top / "old").read_text() == "old"
    assert names(top) == ["old"]
    file.commit(0o644)
    assert (top / "old").read_text() == "new"


def test_a_file_that_is_not_committed_leaves_nothing(top: Path, root: int) -> None:
    file = NewFile.create(root, "/new")
    file.write([memoryview(b"data")])
    file.discard()
    del file
    assert names(top) == []


def test_where_a_file_must_have_a_name_it_has_a_hidden_one(
    top: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without_tmpfile(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without_tmpfile)
    given_up = NewFile.create(root, "/new")
    assert [name.startswith(".arcbox-") for name in names(top)] == [True]
    given_up.discard()
    assert names(top) == []
    write(root, "/new", b"data")
    assert names(top) == ["new"]


def test_a_link_is_written_through_as_a_shell_does(top: Path, root: int) -> None:
    (top / "etc").mkdir()
    (top / "etc" / "target").write_text("old")
    (top / "etc" / "relative").symlink_to("target")
    (top / "absolute").symlink_to("/etc/relative")
    (top / "dangling").symlink_to("etc/not-yet")
    write(root, "/absolute", b"new")
    write(root, "/dangling", b"made")
    assert (top / "etc" / "target").read_text() == "new"
    assert (top / "etc" / "not-yet").read_text() == "made"
    assert (top / "absolute").is_symlink()


def test_links_in_a_circle_are_given_up(top: Path, root: int) -> None:
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        write(root, "/a", b"")


@pytest.mark.parametrize("path", ["/../outside/secret", "/up/outside/secret", "/link", "/etc/../../outside/secret"])
def test_no_path_leads_out_of_the_root(top: Path, root: int, path: str) -> None:
    (top / "etc").mkdir()
    (top / "up").symlink_to("..")
    (top / "link").symlink_to(f"../{OUTSIDE}/secret")
    with pytest.raises(FileNotFoundError):
        read(root, path)
    actions: list[Callable[[], None]] = [
        lambda: write(root, path, b"changed"),
        lambda: rooted_files.remove(root, path, recursive=True),
        lambda: rooted_files.move(root, path, "/stolen"),
        lambda: rooted_files.make_directory(root, path + "/deep", 0o755),
    ]
    for action in actions:
        with suppress(OSError):
            action()
    assert (top.parent / OUTSIDE / "secret").read_text() == "secret"
    assert names(top.parent / OUTSIDE) == ["secret"]


def test_magic_links_of_proc_are_refused() -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("/proc/self/root/etc/passwd", "/proc/self/cwd"):
            with pytest.raises(OSError, match="Too many levels"):
                rooted_files.open_file(root, path)
    finally:
        os.close(root)


def test_what_would_wait_or_act_when_opened_is_not_opened(top: Path, root: int) -> None:
    os.mkfifo(top / "fifo")
    (top / "device").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
        for name in ("fifo", "socket"):
            with pytest.raises(OSError, match="not a regular file"):
                rooted_files.open_file(root, name)
            with pytest.raises(OSError, match="not a regular file"):
                NewFile.create(root, name)
            with pytest.raises(NotADirectoryError):
                rooted_files.list_directory(root, name)
            assert rooted_files.stat_file(root, name).kind is FileKind.OTHER


def test_a_lease_is_not_waited_for(top: Path, root: int) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # that somebody wants the lease back is told by it
    try:
        with (top / "leased").open("w") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with pytest.raises(BlockingIOError):
                rooted_files.open_file(root, "/leased")
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        signal.signal(signal.SIGIO, before)


def test_a_directory_is_neither_read_nor_written(top: Path, root: int) -> None:
    (top / "dir").mkdir()
    with pytest.raises(IsADirectoryError):
        rooted_files.open_file(root, "/dir")
    with pytest.raises(IsADirectoryError):
        NewFile.create(root, "/dir/")


def test_a_listing_has_what_is_known_of_each_entry_by_name(top: Path, root: int) -> None:
    (top / "b").write_bytes(b"12345")
    (top / "b").chmod(0o4711)
    os.utime(top / "b", ns=(0, 1_234_567_890_123_456_789))
    (top / "a").mkdir()
    (top / "c").symlink_to("/nowhere")
    (top / os.fsdecode(b"d\xff")).touch()
    a, b, c, d = rooted_files.list_directory(root, "/")
    assert (a.name, a.kind) == ("a", FileKind.DIRECTORY)
    assert (b.name, b.kind, b.size, b.mode, b.uid) == ("b", FileKind.FILE, 5, 0o4711, os.geteuid())
    assert b.modified_at_ns == 1_234_567_890_123_456_789
    assert (c.name, c.kind, c.symlink_target) == ("c", FileKind.SYMLINK, "/nowhere")
    assert d.name == "d\N{REPLACEMENT CHARACTER}"
    assert rooted_files.stat_file(root, "/c") == c
    assert rooted_files.stat_file(root, "/a/../b") == b
    assert rooted_files.stat_file(root, "/").name == "/"


def test_a_directory_with_too_many_entries_is_not_listed(top: Path, root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooted_files, "MOST_ENTRIES", 3)
    for name in "abcd":
        (top / name).touch()
    with pytest.raises(OSError, match="more than 3 entries"):
        rooted_files.list_directory(root, "/")


def test_directories_are_made_with_those_on_the_way(top: Path, root: int) -> None:
    (top / "etc").mkdir(mode=0o700)
    rooted_files.make_directory(root, "/etc/a/b", 0o777)
    rooted_files.make_directory(root, "/etc/a/b/", 0o700)
    modes = [stat.S_IMODE((top / path).stat().st_mode) for path in ("etc", "etc/a", "etc/a/b")]
    assert modes == [0o700, 0o777, 0o777]
    (top / "file").touch()
    with pytest.raises(NotADirectoryError):
        rooted_files.make_directory(root, "/file", 0o755)
    (top / "dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        rooted_files.make_directory(root, "/dangling", 0o755)


def test_a_directory_that_has_something_in_it_takes_recursive(top: Path, root: int) -> None:
    (top / "dir" / "sub").mkdir(parents=True)
    (top / "dir" / "sub" / "file").touch()
    (top / "dir" / "link").symlink_to(f"../../{OUTSIDE}")
    with pytest.raises(OSError, match="not empty"):
        rooted_files.remove(root, "/dir", recursive=False)
    rooted_files.remove(root, "/dir", recursive=True)
    assert names(top) == []
    assert names(top.parent / OUTSIDE) == ["secret"]


def test_a_link_is_removed_and_moved_itself(top: Path, root: int) -> None:
    (top / "dir").mkdir()
    (top / "link").symlink_to("dir")
    rooted_files.move(root, "/link", "/dir/moved")
    assert (top / "dir" / "moved").is_symlink()
    rooted_files.remove(root, "/dir/moved", recursive=True)
    assert names(top) == ["dir"]


@pytest.mark.parametrize("path", ["/", "/..", "/dir/.", ""])
def test_what_has_no_name_is_not_removed(top: Path, root: int, path: str) -> None:
    (top / "dir").mkdir()
    with pytest.raises(OSError, match="does not end in a name"):
        rooted_files.remove(root, path, recursive=True)


def test_a_tree_of_any_depth_is_removed(top: Path, root: int) -> None:
    depth = 1_100  # more than descriptors, levels of recursion, and bytes of a path allow
    current = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=current)
        below = os.open("deep", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    rooted_files.remove(root, "/deep", recursive=True)
    assert names(top) == []


def test_a_directory_that_is_moved_while_it_is_removed_takes_nothing_else_with_it(
    top: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "tree" / "inner" / "below").mkdir(parents=True)
    (top / "elsewhere" / "below").mkdir(parents=True)
    (top / "elsewhere" / "precious").touch()
    real = rooted_files._empty

    def moving(directory: int) -> str | None:
        found = real(directory)
        if found is None and (top / "tree" / "inner").exists():
            (top / "tree" / "inner").rename(top / "elsewhere" / "inner")
        return found

    monkeypatch.setattr(rooted_files, "_empty", moving)
    with pytest.raises(OSError, match="it was moved"):
        rooted_files.remove(root, "/tree", recursive=True)
    assert names(top / "elsewhere") == ["below", "inner", "precious"]
