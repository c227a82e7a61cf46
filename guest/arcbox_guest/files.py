"""Files of the guest, made ready for the kernel to send.

They are read through a shared mapping, which brings their pages into the page cache; from there the kernel sends them,
uncopied where the socket can do that. What may wait for storage happens in a thread. Only for what is in memory
already, path, inode and pages, none is needed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from attrs import define, field

from arcbox_guest.cached_files import CachedFiles
from arcbox_guest.page_cache import is_resident, make_resident

_THREADS: Final = 32
"""Files that are opened and read at a time; more of them wait, and nothing else does."""

_PIECE: Final = 1024 * 1024
"""Bytes that are sent at once: as much as a socket's buffer takes, and their pages are soon looked for."""

_COPY: Final = 128 * 1024
"""Bytes that are read and sent at once: half of what an AF_VSOCK peer takes, by default, before it has read."""

_MOST_CACHED: Final = 4 * 1024 * 1024
"""Bytes that are worth asking for whether they are in memory: to ask for more takes longer than to use a thread."""


@define(eq=False)
class FileRange:
    """A part of an open file, at least one byte of it, which was in the page cache a moment ago."""

    descriptor: int
    offset: int
    length: int
    _local: bool = True
    """False for one that is served by somebody (FUSE, NFS): every call may wait for that, close(2) as well."""

    limiter: trio.CapacityLimiter | None = None
    """Of files that are sent from threads."""

    async def send(self, socket: int, sent: int, *, copied: bool = False) -> int:
        """Send some of what comes after the first `sent` bytes, with sendfile(2).

        The event loop waits for no storage: pages may have been evicted since they were read, and those that the kernel
        has to read, or to ask somebody for, are sent from a thread.

        Args:
            socket: a non-blocking one, connected.
            sent: bytes of this part.
            copied: have them read and sent, for sockets to which sendfile(2) gives one page at a time.

        Returns:
            How many; 0 when there are no more, or they can't be read.

        Raises:
            BlockingIOError: the socket takes none now.
        """
        offset, size = self.offset + sent, min(self.length - sent, _PIECE)
        if self._local and is_resident(self.descriptor, offset, size):
            return _send(socket, self.descriptor, offset, size, copied=copied)
        part = FileRange(os.dup(self.descriptor), offset, size, local=self._local)
        return await trio.to_thread.run_sync(
            partial(part.send_and_close, copied=copied),
            _Descriptor(os.dup(socket)),
            limiter=self.limiter,
            abandon_on_cancel=True,
        )

    def send_and_close(self, socket: _Descriptor, *, copied: bool) -> int:
        """Send it all, as far as the socket takes it. Waits for storage. The socket is a copy, which is closed, too."""
        try:
            return _send(socket.number, self.descriptor, self.offset, self.length, copied=copied)
        finally:
            socket.close()
            descriptor, self.descriptor = self.descriptor, -1
            _close(descriptor)

    def close(self) -> None:
        """Let go of the file, without waiting for it; again does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        if self._local:
            _close(descriptor)
        else:
            trio.lowlevel.start_thread_soon(partial(_close, descriptor), _ignore)

    def left(self) -> int:
        """How many of its bytes the file still has: it may have been cut short. Of a local file; others are trusted."""
        if not self._local:
            return self.length
        try:
            size = os.fstat(self.descriptor).st_size
        except OSError:
            return 0
        return max(0, min(self.length, size - self.offset))

    def __del__(self) -> None:
        self.close()  # nobody took it: whoever asked was cancelled meanwhile


@define(eq=False)
class _Descriptor:
    """A copy of a descriptor, closed with the last reference to it at the latest."""

    number: int

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()


@define(eq=False)
class Files:
    """The guest's files."""

    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_THREADS), kw_only=True)
    _senders: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_THREADS))
    _cached: CachedFiles = field(init=False, factory=CachedFiles)

    async def open_range(self, path: str, offset: int, length: int) -> FileRange | None:
        """Open a part of a regular file, and read it into the page cache.

        Everything that may wait for storage happens in a thread. A caller that is cancelled does not wait for it: what
        comes of it later is closed.

        Args:
            path: the file; symbolic links are followed.
            offset: where the part begins, in bytes from 0.
            length: its bytes; fewer come where the file ends before.

        Returns:
            None when the file ends at `offset`, or before.

        Raises:
            OSError: EISDIR for a directory, EINVAL for what is no regular file or no path, and whatever open(2),
                mmap(2) and read(2) say.
        """
        file = await trio.to_thread.run_sync(
            open_range, path, offset, length, self._cached, limiter=self._limiter, abandon_on_cancel=True
        )
        if file is not None:
            file.limiter = self._senders
        return file

    def open_cached(self, path: str, offset: int, length: int) -> FileRange | None:
        """The same part, if all of it is in memory and can be had without waiting; None in every other case.

        Only a path that `open_range` has met before can be.
        """
        if length > _MOST_CACHED:
            return None
        try:
            cached = self._cached.open(_encode(path))
        except OSError:  # no path: `open_range` says so
            return None
        if cached is None:
            return None
        file = FileRange(cached.descriptor, offset, min(length, cached.size - offset), local=True)
        if file.length > 0 and is_resident(cached.descriptor, offset, file.length):
            return file
        file.close()
        return None


def open_range(path: str, offset: int, length: int, cached: CachedFiles) -> FileRange | None:
    """What `Files.open_range` does, in the calling thread, which may wait for storage; `cached` learns from it."""
    descriptor = _open_regular(_encode(path))
    try:
        local = cached.learn(descriptor)
        end = min(offset + length, os.fstat(descriptor).st_size)
        while offset < end:
            resident = make_resident(descriptor, offset, end - offset)
            size = end if resident else os.fstat(descriptor).st_size
            if size >= end:  # not resident: it was cut short, and has grown again
                return FileRange(os.dup(descriptor), offset, end - offset, local=local)
            end = size
        return None
    finally:
        _close(descriptor)


def _encode(path: str) -> bytes:
    """A path as the kernel knows it: UTF-8, whatever the locale says."""
    try:
        encoded = path.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "embedded null byte")
    return encoded


def _send(socket: int, file: int, offset: int, size: int, *, copied: bool) -> int:
    try:
        if copied:
            return os.write(socket, os.pread(file, min(size, _COPY), offset))
        return os.sendfile(socket, file, offset, size)
    except BlockingIOError:
        raise
    except OSError:
        return 0  # the file's fault; or the socket's, and then whatever is sent next meets it, too


def _ignore(_outcome: object) -> None:
    pass


def _close(descriptor: int) -> None:
    with suppress(OSError):  # the file was only read, and the descriptor is gone whatever its file system says
        os.close(descriptor)


def _open_regular(path: bytes) -> int:
    """Open a file for reading, if it is a regular one.

    What it is must be known before: opening a FIFO can hang, and opening a device can do anything.
    """
    handle = os.open(path, os.O_PATH)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
    finally:
        os.close(handle)
