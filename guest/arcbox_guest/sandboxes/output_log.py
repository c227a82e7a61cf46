"""The last part of what a command wrote, in a file."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from arcbox_guest.sandboxes.driver import OutputStream

log = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 256 * 1024
"""Bytes."""


@define(eq=False)
class OutputLog:
    """Keeps the newest output: `limit` bytes of it, give or take a line, and never twice as many.

    The file is only ever added to, or replaced by another one: who opens it once sees one end of what was written by
    then, without a gap.
    """

    path: Path
    _in_thread: Callable[..., Awaitable[None]]
    """Called with a blocking function and its arguments."""

    _limit: int = DEFAULT_LIMIT
    _turn: trio.Lock = field(init=False, factory=trio.Lock)
    _complete: bool = field(init=False, default=True)
    """Whether all of the output up to now is in the file, or was."""

    _complained: bool = field(init=False, default=False)

    def begin_anew(self) -> None:
        """Have the next write replace what there is."""
        self._complete = False

    async def write(self, data: bytes | memoryview) -> None:
        """Add to the end; after a loss, begin anew. A loss is logged, once: the command goes on."""
        async with self._turn:
            try:
                await self._in_thread(append if self._complete else begin, self.path, data, self._limit)
                self._complete = True
            except OSError as error:
                self._complete = False
                if not self._complained:
                    log.warning("output not kept", extra={"path": str(self.path), "reason": str(error)})
                self._complained = True

    async def copy(self, output: OutputStream) -> None:
        """Write all that comes from a process, until its end."""
        while data := await output.receive():
            await self.write(data)


def append(path: Path, data: bytes | memoryview, limit: int) -> None:
    """Add to a file, or replace it by the last part of what it then has. Its directory is made if it is not there.

    Raises:
        OSError: it can't be written. What it had before, it still has.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "ab", buffering=0, opener=_open_private) as file:
        size = file.tell()
        if size + len(data) <= 2 * limit:
            if file.write(data) < len(data):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
    _replace(path, _newest(path.read_bytes() + data, limit))


def begin(path: Path, data: bytes | memoryview, limit: int) -> None:
    """Have a file with this and nothing else. Raises OSError as `append` does."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(path, _newest(bytes(data), limit))


def _newest(data: bytes, limit: int) -> bytes:
    """From the last beginning of a line that leaves `limit` bytes; if that leaves too many, just these."""
    start = data.rfind(b"\n", 0, len(data) - limit) + 1
    return data[start if len(data) - start < 2 * limit else len(data) - limit :]


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=_open_private) as file:
            file.write(data)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, mode=0o600)  # a FIFO that nobody reads is an error, not a wait
