"""MmapReadFile."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_handlers._command import FileReply, UnaryCommand
from arcbox_handlers._errors import CommandError
from arcbox_handlers._wire import varint
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_guest.files import FileRange
    from arcbox_handlers._command import Context

_MAX_LENGTH = 64 * 1024 * 1024
_DATA_TAG = b"\x0a"  # field 1, length-delimited
_BYTES_READ_TAG = b"\x10"  # field 2, varint


def _reply(file: FileRange) -> FileReply:
    """An MmapReadFileResponse with at least one byte of data.

    Its bytes_read says how many there were when they were sent. The kernel may send the file's own pages, uncopied:
    where a file is cut short within a page that is on its way, what was after the cut arrives as zeros, and is not
    counted. Only a cut that comes when all of the data has been sent, and not yet received, goes uncounted.
    """
    length = varint(file.length)

    def tail(sent: int) -> bytes:
        bytes_read = length if sent == file.length else varint(min(sent, file.left()), len(length))
        return _BYTES_READ_TAG + bytes_read

    return FileReply(_DATA_TAG + length, file, tail, tail_size=len(_BYTES_READ_TAG) + len(length))


@frozen
class MmapReadFile(UnaryCommand[arcbox_v1.MmapReadFileRequest]):
    """A part of a file, cut short where the file ends; the code of an error is the operating system's errno."""

    handles = MessageType.MmapReadFileRequest

    def at_once(self, context: Context) -> FileReply | None:
        request = self.request
        if not 0 < request.length <= _MAX_LENGTH:
            return None
        file = context.guest.files.open_cached(request.path, request.offset, request.length)
        return _reply(file) if file is not None else None

    async def __call__(self, context: Context) -> arcbox_v1.MmapReadFileResponse | FileReply:
        request = self.request
        if request.length == 0:
            return arcbox_v1.MmapReadFileResponse()
        if request.length > _MAX_LENGTH:
            raise CommandError(errno.EINVAL, "MmapReadFile length exceeds 64 MiB cap")
        try:
            file = await context.guest.files.open_range(request.path, request.offset, request.length)
        except OSError as error:
            code = error.errno or errno.EIO
            # A path may be as long as a frame; what is longer than PATH_MAX is no file's, and nobody reads it.
            raise CommandError(code, f"{error.strerror or os.strerror(code)}: {request.path:.4096}") from error
        return _reply(file) if file is not None else arcbox_v1.MmapReadFileResponse()
