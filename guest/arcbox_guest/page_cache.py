"""The kernel's page cache: is a part of a file there, and how it gets there.

It gets there through a shared mapping. Nothing looks at the mapping's bytes: a page that was cut off meanwhile would
kill the process (SIGBUS).
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, mmap
from struct import Struct
from typing import TYPE_CHECKING, Final

from arcbox_guest import linux

if TYPE_CHECKING:
    from collections.abc import Callable

_MADV_POPULATE_READ: Final = 22
"""madvise(2), since Linux 5.14; the mmap module of Python 3.11 has no name for it."""

_SYS_CACHESTAT: Final = 451
"""On all architectures."""

_CACHESTAT_RANGE: Final = Struct("=QQ")
"""Offset and length, in bytes."""

_CACHESTAT: Final = Struct("=QQQQQ")
"""Numbers of pages: cached, dirty, in writeback, evicted, recently evicted."""

_CachestatBuffer = ctypes.c_char * _CACHESTAT.size

_READ_AHEAD: Final = 1024 * 1024
"""Bytes per read(2), where that takes the place of madvise(2)."""


def is_resident(descriptor: int, offset: int, length: int) -> bool:
    """Whether a part of a file is in the page cache, by cachestat(2); False on a Linux before 6.5, which can't tell.

    Never waits for storage. A page that is just being read counts, too: whoever asks for it gets it soon.
    """
    first, last = offset // PAGESIZE, (offset + length - 1) // PAGESIZE
    found = _CachestatBuffer()
    if linux.libc.syscall(_SYS_CACHESTAT, descriptor, _CACHESTAT_RANGE.pack(offset, length), found, 0) != 0:
        return False
    cached: int = _CACHESTAT.unpack(found.raw)[0]
    return cached == last - first + 1


def make_resident(descriptor: int, offset: int, length: int) -> bool:
    """Bring a part of a file into the page cache; says whether all of it was there to be read.

    Raises:
        OSError: the file can't be mapped or read.
    """
    try:
        mapping = _map(descriptor, offset, length)
    except OSError as error:
        # FUSE with direct I/O maps nothing, and is read instead. So is sysfs, whose files are shorter than they say.
        if error.errno != errno.ENODEV or not _read_ahead(descriptor, offset, length):
            raise
        return True
    if mapping is None:
        return False
    with mapping:
        if _may_see_the_cache(descriptor) and _all_cached(mapping):
            return True
        failure = _populate(mapping)
    if failure in (errno.EINVAL, errno.EFAULT):  # an old kernel, or pages that are gone or broken: read(2) knows which
        return _read_ahead(descriptor, offset, length)
    if failure:
        raise OSError(failure, os.strerror(failure))
    return True


def _may_see_the_cache(descriptor: int) -> bool:
    """Whether mincore(2) tells the truth: of a file that its caller may not write, it says that all is resident."""
    return os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)


def _map(descriptor: int, offset: int, length: int) -> mmap | None:
    """A shared mapping of the pages that a part of a file is on; None when the file is shorter by now."""
    lead = offset % PAGESIZE
    try:
        return mmap(descriptor, lead + length, MAP_SHARED, PROT_READ, offset=offset - lead)
    except ValueError:
        return None


def _all_cached(mapping: mmap) -> bool:
    """Whether the page cache has it all. mincore(2) asks for a third of the time that mapping the pages takes."""
    address, size = _location(mapping)
    pages = (ctypes.c_char * -(-size // PAGESIZE))()
    return linux.libc.mincore(address, ctypes.c_size_t(size), pages) == 0 and b"\0" not in pages.raw


def _populate(mapping: mmap) -> int:
    """Read in what a mapping shows; returns an errno, or 0.

    `mmap.madvise` would hold the interpreter lock for as long as the storage takes; ctypes lets go of it.
    """
    address, size = _location(mapping)
    return ctypes.get_errno() if linux.libc.madvise(address, ctypes.c_size_t(size), _MADV_POPULATE_READ) else 0


def _read_ahead(descriptor: int, offset: int, length: int) -> bool:
    """Read a part of a file, for what that does to the page cache; says whether all of it was there."""
    scratch = memoryview(bytearray(min(_READ_AHEAD, length)))
    end = offset + length
    while offset < end:
        count = os.preadv(descriptor, [scratch[: end - offset]], offset)
        if count == 0:
            return False
        offset += count
    return True


@cache
def _as_read_buffer() -> Callable[..., int]:
    """Buffer address of a read-only mapping, which ctypes' own from_buffer refuses."""
    function = ctypes.pythonapi.PyObject_AsReadBuffer
    function.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p)
    return function


def _location(mapping: mmap) -> tuple[ctypes.c_void_p, int]:
    """Where a mapping is, and its size in bytes."""
    address, size = ctypes.c_void_p(), ctypes.c_ssize_t()
    _as_read_buffer()(mapping, ctypes.byref(address), ctypes.byref(size))
    return address, size.value
