"""Files below a root directory whose owner may change them at any moment. Everything here blocks.

A path is resolved by the kernel with the root as `/` (openat2(2), RESOLVE_IN_ROOT): neither `..` nor a symbolic link
leads out of it, nor a rename while it is resolved, and magic links of /proc are refused. What is then done is done to
a descriptor, or to one name in a directory's descriptor, never to a path again. Nothing is opened before it is known
to be a regular file or a directory: a FIFO would wait for its other end, and a device may do anything.
"""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import stat
from collections import deque
from contextlib import contextmanager, suppress
from enum import Enum, auto
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.linux import check_no_mount_point, open_in_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_ENTRIES: Final = 100_000
"""Entries of a directory that are listed: each takes some hundred bytes of memory."""

_MOST_LINKS: Final = 40
"""Symbolic links in a row, as in the kernel: path_resolution(7)."""

_MOST_PIECES: Final = 1024
"""Of one writev(2): IOV_MAX."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)
"""What open(2) says to O_TMPFILE where file system or kernel have no such thing."""


class FileKind(Enum):
    """What a directory entry is."""

    FILE = auto()
    DIRECTORY = auto()
    SYMLINK = auto()
    OTHER = auto()


@frozen(kw_only=True)
class FileStat:
    """What is known of a file without opening it."""

    name: str
    """Within its directory; bytes that are not UTF-8 are replaced."""

    kind: FileKind
    size: int
    """In bytes."""

    mode: int
    """The permission bits."""

    modified_at_ns: int
    """Unix time in nanoseconds."""

    uid: int
    gid: int
    symlink_target: str = ""


@define(eq=False)
class OpenedFile:
    """A regular file, open for reading, until nobody has it any more: a thread may have been left with it."""

    _descriptor: int

    def read_into(self, buffer: memoryview) -> int:
        """Read on, as much as there is and fits; the number of bytes, 0 at the end."""
        filled = 0
        while filled < len(buffer) and (count := os.readv(self._descriptor, [buffer[filled:]])):
            filled += count
        return filled

    def __del__(self) -> None:
        _close_soon(self._descriptor)


@define(eq=False)
class NewFile:
    """A file that is being written and has no name yet, or a hidden one where the file system can't do without.

    Whoever looks for its name finds what was there before, or nothing, until `commit` puts all of it there at once.
    Nothing of it is left when it is dropped before, nor when the agent is killed. It is not synced to the disk: a
    sandbox does not outlive the machine.
    """

    _directory: int
    _name: str
    _descriptor: int
    _hidden: str
    """Its name in the directory; empty for none."""

    size: int = field(init=False, default=0)
    """Bytes that were written."""

    @classmethod
    def create(cls, root: int, path: str) -> NewFile:
        """Begin a file that shall be at a path, where a symbolic link may lead to another one.

        Raises:
            OSError: EISDIR, there is a directory; EINVAL, it is a FIFO, a device or a socket.
        """
        directory, name = _followed(root, path)
        try:
            with suppress(FileNotFoundError):
                _check_is_regular(os.stat(name, dir_fd=directory, follow_symlinks=False))
            descriptor, hidden = _open_unnamed(directory)
        except BaseException:
            os.close(directory)
            raise
        return cls(directory, name, descriptor, hidden)

    def write(self, pieces: Sequence[memoryview]) -> None:
        """Append bytes."""
        waiting = deque(pieces)
        while waiting:
            count = os.writev(self._descriptor, list(islice(waiting, _MOST_PIECES)))
            self.size += count
            while waiting and count >= len(waiting[0]):
                count -= len(waiting.popleft())
            if count:
                waiting[0] = waiting[0][count:]

    def commit(self, mode: int) -> None:
        """Put the file where it belongs, in place of what is there.

        Args:
            mode: its permission bits.
        """
        os.fchmod(self._descriptor, mode)
        if not self._hidden:
            self._hidden = _hidden_name()
            os.link(f"/proc/self/fd/{self._descriptor}", self._hidden, dst_dir_fd=self._directory)
        with suppress(FileNotFoundError):
            check_no_mount_point(self._directory, self._name)
        os.rename(self._hidden, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._hidden = ""

    def discard(self) -> None:
        """Remove what there is of it, if it was not committed. Again does nothing."""
        hidden, self._hidden = self._hidden, ""
        if hidden:
            with suppress(FileNotFoundError):
                os.unlink(hidden, dir_fd=self._directory)

    def __del__(self) -> None:
        trio.lowlevel.start_thread_soon(
            partial(_discard, self._directory, self._hidden, self._descriptor), _ignore, "discard"
        )


def open_file(root: int, path: str) -> OpenedFile:
    """Open a regular file for reading.

    Raises:
        OSError: EISDIR, it is a directory; EINVAL, it is no regular file; EAGAIN, something holds a lease on it.
    """
    with opened(root, path, os.O_PATH) as found:
        _check_is_regular(os.fstat(found))
        return OpenedFile(os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def stat_file(root: int, path: str) -> FileStat:
    """What is at a path; a symbolic link is not followed there."""
    with opened(root, path, os.O_PATH | os.O_NOFOLLOW) as found:
        status = os.fstat(found)
        target = os.readlink("", dir_fd=found) if stat.S_ISLNK(status.st_mode) else ""
    return _file_stat(posixpath.basename(path.rstrip("/")) or "/", status, target)


def list_directory(root: int, path: str) -> list[FileStat]:
    """What is in a directory, by name; symbolic links are not followed there.

    Raises:
        OSError: EFBIG, it has more than `MOST_ENTRIES` entries.
    """
    entries = []
    with opened(root, path, os.O_RDONLY | os.O_DIRECTORY) as directory, os.scandir(directory) as found:
        for entry in found:
            with suppress(FileNotFoundError):  # it was removed just now
                entries.append(_entry_stat(directory, entry))
            if len(entries) > MOST_ENTRIES:
                raise OSError(errno.EFBIG, f"more than {MOST_ENTRIES:,} entries")
    return sorted(entries, key=lambda entry: entry.name)


def make_directory(root: int, path: str, mode: int) -> None:
    """Make a directory, and those on the way there; one that exists is left as it is.

    Raises:
        OSError: ENOTDIR, something else is there.
    """
    done = "/"
    for name in filter(None, path.split("/")):
        done = posixpath.join(done, name)
        try:
            with opened(root, done, os.O_PATH | os.O_DIRECTORY):
                continue
        except FileNotFoundError:
            pass
        with _parent(root, done) as (directory, last), suppress(FileExistsError):
            os.mkdir(last, mode, dir_fd=directory)
            with _opened_in(directory, last) as made:
                os.fchmod(made, mode)  # whatever the umask
    with opened(root, path, os.O_PATH | os.O_DIRECTORY):
        pass


def remove(root: int, path: str, *, recursive: bool) -> None:
    """Remove what is at a path: a symbolic link itself, a directory if it is empty or `recursive`.

    Raises:
        OSError: ENOTEMPTY, the directory has something in it; EBUSY, it is a mount point, or has one below.
    """
    with _parent(root, path) as (directory, name):
        check_no_mount_point(directory, name)
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            if recursive:
                _remove_tree(directory, name)
            else:
                os.rmdir(name, dir_fd=directory)


def move(root: int, source: str, target: str) -> None:
    """Rename something, in place of a file or an empty directory that is there: rename(2)."""
    with _parent(root, source) as (old, old_name), _parent(root, target) as (new, new_name):
        check_no_mount_point(old, old_name)
        with suppress(FileNotFoundError):
            check_no_mount_point(new, new_name)
        os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)


@contextmanager
def opened(root: int, path: str, flags: int) -> Iterator[int]:
    """Something below the root, open for as long as the context lasts."""
    descriptor = open_in_root(root, path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened_in(directory: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _parent(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The directory that a path's last name is in, and that name."""
    directory, name = _open_parent(root, path)
    try:
        yield directory, name
    finally:
        os.close(directory)


def _open_parent(root: int, path: str) -> tuple[int, str]:
    head, name = posixpath.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise OSError(errno.EINVAL, "the path does not end in a name")
    return open_in_root(root, head or "/", os.O_PATH | os.O_DIRECTORY), name


def _followed(root: int, path: str) -> tuple[int, str]:
    """The directory and the name that a path leads to, which is no symbolic link, and may not exist."""
    for _ in range(_MOST_LINKS):
        directory, name = _open_parent(root, path)
        try:
            target = os.readlink(name, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # no link, or nothing
                return directory, name
            os.close(directory)
            raise
        os.close(directory)
        path = posixpath.join(posixpath.dirname(path.rstrip("/")), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _open_unnamed(directory: int) -> tuple[int, str]:
    """A new file in a directory, and its name there; empty where the file system can do without."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=directory), ""
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    hidden = _hidden_name()
    return os.open(hidden, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory), hidden


def _hidden_name() -> str:
    return f".arcbox-{secrets.token_hex(8)}"


def _remove_tree(parent: int, name: str) -> None:
    """Remove a directory and all below, however deep it is, with two descriptors.

    On the way up, the directory is checked to be the one that was left on the way down: who moves directories meanwhile
    gets ESTALE, and nothing else of his is removed.
    """
    way: list[tuple[tuple[int, int], str]] = [(_identity(parent), name)]
    current = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        while way:
            child = _empty(current)
            if child is not None:
                way.append((_identity(current), child))
                following = os.open(child, _DIRECTORY, dir_fd=current)
            else:
                above, last = way.pop()
                following = os.open("..", _DIRECTORY, dir_fd=current)
                if _identity(following) != above:
                    os.close(following)
                    raise OSError(errno.ESTALE, "it was moved while it was removed")
                os.rmdir(last, dir_fd=following)
            os.close(current)
            current = following
    finally:
        os.close(current)


def _empty(directory: int) -> str | None:
    """Remove all from a directory but one subdirectory that is not empty, whose name is returned, and what is after."""
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                check_no_mount_point(directory, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    os.rmdir(entry.name, dir_fd=directory)
                else:
                    os.unlink(entry.name, dir_fd=directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                return entry.name
    return None


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _check_is_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def _entry_stat(directory: int, entry: os.DirEntry[str]) -> FileStat:
    target = os.readlink(entry.name, dir_fd=directory) if entry.is_symlink() else ""
    return _file_stat(entry.name, entry.stat(follow_symlinks=False), target)


def _file_stat(name: str, status: os.stat_result, target: str) -> FileStat:
    kinds = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFLNK: FileKind.SYMLINK}
    return FileStat(
        name=printable(name),
        kind=kinds.get(stat.S_IFMT(status.st_mode), FileKind.OTHER),
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        modified_at_ns=status.st_mtime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        symlink_target=printable(target),
    )


def printable(name: str) -> str:
    """A name as text that UTF-8 can carry."""
    return os.fsencode(name).decode(errors="replace")


def _close_soon(descriptor: int) -> None:
    """Close a file without waiting for whoever serves its file system."""
    trio.lowlevel.start_thread_soon(partial(os.close, descriptor), _ignore, "close")


def _discard(directory: int, hidden: str, descriptor: int) -> None:
    with suppress(OSError):
        if hidden:
            os.unlink(hidden, dir_fd=directory)
    for opened in (descriptor, directory):
        with suppress(OSError):
            os.close(opened)


def _ignore(_outcome: object) -> None:
    pass
