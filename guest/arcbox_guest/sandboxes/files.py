"""Files of sandboxes: read, written and watched as root of the sandbox, below its root as its processes see it."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import trio
from attrs import define, field

from arcbox_guest.errors import (
    ConflictError,
    GuestError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
    UnavailableError,
)
from arcbox_guest.sandboxes import rooted_files
from arcbox_guest.sandboxes.rooted_files import NewFile, OpenedFile
from arcbox_guest.sandboxes.watches import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from arcbox_guest.sandboxes.manager import SandboxManager
    from arcbox_guest.sandboxes.rooted_files import FileStat

_P = ParamSpec("_P")
_T = TypeVar("_T")

CHUNK: Final = 1024 * 1024
"""Bytes that are read at a time, and written."""

MOST_BYTES: Final = 256 * 1024 * 1024
"""Bytes that may be written to a file, unless the settings say otherwise."""

_THREADS: Final = 8
"""Calls at a time for one sandbox: where its storage hangs, only its own files are waited for."""

_DISCARDING: Final = 5.0
"""Seconds that are waited for the removal of a file that was not written to its end; it goes on after that."""

_ERRORS: Final[dict[int, type[GuestError]]] = {
    errno.ENOENT: NotFoundError,
    errno.ENOTDIR: NotFoundError,
    errno.EEXIST: ConflictError,
    errno.ENOTEMPTY: PreconditionError,
    errno.EBUSY: PreconditionError,
    errno.EROFS: PreconditionError,
    errno.EACCES: PreconditionError,
    errno.EPERM: PreconditionError,
    errno.EXDEV: PreconditionError,
    errno.EFBIG: TooLargeError,
    errno.EINVAL: InvalidArgumentError,
    errno.EISDIR: InvalidArgumentError,
    errno.ELOOP: InvalidArgumentError,
    errno.ENAMETOOLONG: InvalidArgumentError,
    errno.EAGAIN: UnavailableError,
    errno.EDQUOT: UnavailableError,
    errno.EMFILE: UnavailableError,
    errno.ENOSPC: UnavailableError,
    errno.ESTALE: UnavailableError,
}
"""What errno means for the caller; any other is a failure of the guest's."""


@define(eq=False)
class FileReader:
    """A file of a sandbox that is being read."""

    _path: str
    _file: OpenedFile
    _limiter: trio.CapacityLimiter
    _buffer: memoryview = field(init=False, factory=lambda: memoryview(bytearray(CHUNK)))

    async def receive(self) -> memoryview:
        """The next bytes, up to `CHUNK`, valid until the next call; empty at the end.

        Raises:
            GuestError: they can't be read.
        """
        with explained(self._path):
            count = await _in_thread(self._limiter, self._file.read_into, self._buffer)
        return self._buffer[:count]


@define(eq=False)
class FileWriter:
    """A file of a sandbox that is being written. Nobody sees it before `commit`."""

    _path: str
    _file: NewFile
    _limiter: trio.CapacityLimiter
    _most_bytes: int
    _waiting: list[memoryview] = field(init=False, factory=list)
    _size: int = field(init=False, default=0)
    """Bytes that were sent, with those that wait."""

    async def send(self, data: memoryview) -> None:
        """Append bytes, which are kept until there are enough to be worth a thread.

        Raises:
            TooLargeError: it gets larger than files may be.
            UnavailableError: there is no space left.
            GuestError: it can't be written.
        """
        self._size += len(data)
        if self._size > self._most_bytes:
            raise TooLargeError(f"{self._path}: more than {self._most_bytes // 2**20} MiB: see sandbox.max_file_mib")
        self._waiting.append(data)
        if self._size - self._file.size >= CHUNK:
            await self._write()

    async def commit(self, mode: int) -> None:
        """Put it in place of what is there, all at once.

        Args:
            mode: its permission bits.

        Raises:
            GuestError: it can't be put there.
        """
        await self._write()
        with explained(self._path):
            await _in_thread(self._limiter, self._file.commit, mode)

    async def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        with explained(self._path):
            await _in_thread(self._limiter, self._file.write, waiting)

    async def discard(self) -> None:
        """Remove what there is of it, if it was not committed."""
        with suppress(OSError):
            await _in_thread(self._limiter, self._file.discard)


@define(eq=False)
class SandboxFiles:
    """The files of all sandboxes.

    Every method takes the sandbox's id and a path in it, which is absolute, and raises:
        NotFoundError: no such sandbox, file or directory.
        PreconditionError: the sandbox is neither ready nor running nor paused; or the file system refuses.
        InvalidArgumentError: the path makes no sense, or what is there is of another kind.
        UnavailableError: the sandbox ended meanwhile, there is no space left, and the like.
    """

    _manager: SandboxManager
    _most_bytes: int = MOST_BYTES
    _limiters: WeakValueDictionary[str, trio.CapacityLimiter] = field(init=False, factory=WeakValueDictionary)
    """Of the sandboxes for which something is being done, by id."""

    @asynccontextmanager
    async def reading(self, sandbox_id: str, path: str) -> AsyncIterator[FileReader]:
        """Open a regular file for reading, for as long as the context lasts."""
        file = await self._call(sandbox_id, path, rooted_files.open_file, path)
        yield FileReader(path, file, self._limiter(sandbox_id))

    @asynccontextmanager
    async def writing(self, sandbox_id: str, path: str) -> AsyncIterator[FileWriter]:
        """Begin a file; nothing is left of it if it was not committed when the context is left."""
        file = await self._call(sandbox_id, path, NewFile.create, path)
        writer = FileWriter(path, file, self._limiter(sandbox_id), self._most_bytes)
        try:
            yield writer
        finally:
            with trio.move_on_after(_DISCARDING, shield=True):
                await writer.discard()

    async def stat(self, sandbox_id: str, path: str) -> FileStat:
        """What is at a path; a symbolic link is not followed there."""
        return await self._call(sandbox_id, path, rooted_files.stat_file, path)

    async def list(self, sandbox_id: str, path: str) -> Sequence[FileStat]:
        """What is in a directory, by name.

        Raises:
            TooLargeError: more than 100,000 entries.
        """
        return await self._call(sandbox_id, path, rooted_files.list_directory, path)

    async def make_directory(self, sandbox_id: str, path: str, mode: int) -> None:
        """Make a directory and those on the way there; one that exists is left as it is."""
        await self._call(sandbox_id, path, rooted_files.make_directory, path, mode)

    async def remove(self, sandbox_id: str, path: str, *, recursive: bool) -> None:
        """Remove a file, a symbolic link, an empty directory, or with `recursive` any directory.

        Raises:
            PreconditionError: the directory has something in it.
        """
        await self._call(sandbox_id, path, rooted_files.remove, path, recursive=recursive)

    async def move(self, sandbox_id: str, source: str, target: str) -> None:
        """Rename something, in place of a file or an empty directory that is there."""
        _check_path(source)
        await self._call(sandbox_id, target, rooted_files.move, source, target)

    async def watch(self, sandbox_id: str, path: str, *, recursive: bool) -> Watch:
        """Watch a directory from now on, until the result is dropped."""
        call = partial(self._call, sandbox_id, path)
        with explained(path):
            watch = Watch(path, recursive, call, partial(self._manager.over, sandbox_id))
        await watch.begin()
        return watch

    async def _call(
        self,
        sandbox_id: str,
        path: str,
        function: Callable[Concatenate[int, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Call a function with the open root directory of a sandbox, in a thread; `path` is what it is about."""
        _check_path(path)
        await self._manager.reach(sandbox_id, "its files")

        def call() -> _T:
            with self._manager.root(sandbox_id) as root:
                return function(root, *args, **kwargs)

        with explained(path):
            return await _in_thread(self._limiter(sandbox_id), call)

    def _limiter(self, sandbox_id: str) -> trio.CapacityLimiter:
        return self._limiters.setdefault(sandbox_id, trio.CapacityLimiter(_THREADS))


async def _in_thread(limiter: trio.CapacityLimiter, function: Callable[..., _T], *args: object) -> _T:
    """Call what may wait for storage. A caller that is cancelled leaves it alone: it ends by itself, or never."""
    return await trio.to_thread.run_sync(function, *args, limiter=limiter, abandon_on_cancel=True)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Make the kernel's complaints about a path errors for the caller."""
    try:
        yield
    except OSError as error:
        kind = _ERRORS.get(error.errno or 0, GuestError)
        raise kind(f"{path:.4096}: {(error.strerror or str(error)).lower()}") from error


def _check_path(path: str) -> None:
    if not path or "\0" in path:
        raise InvalidArgumentError("a path in the sandbox is needed, without NUL" if path else "no path was given")
