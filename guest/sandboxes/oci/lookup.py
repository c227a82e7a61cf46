"""Whether a command can be executed, asked before it is: runtimes give 255 or 1 for every reason not to.

Asked of the sandbox's files as they are now, so a race with what runs inside is lost gracefully: the runtime's own
exit code and message are the answer then.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import struct
from typing import TYPE_CHECKING, Final

from guest.sandboxes.oci.root_files import opened, read_start

if TYPE_CHECKING:
    from guest.sandboxes.oci.users import Identity

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

_PT_INTERP: Final = 3
_PROGRAM_HEADERS: Final = 64 * 1024
"""Bytes from the beginning of an executable in which its program headers are looked for."""


class CommandError(Exception):
    """A command can't be executed. The text is a shell's complaint about it."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def check(root: int, name: str, *, working_dir: str, path: str, identity: Identity) -> None:
    """Find out whether a command can be executed.

    Args:
        root: the open root directory of the sandbox.
        name: as in the first argument of a command line.
        working_dir: absolute.
        path: the variable PATH.
        identity: who shall execute it.

    Raises:
        CommandError: it can't.
    """
    # Nothing is looked for in the working directory, as a shell does for an empty part of PATH: runtimes disagree.
    directories = [directory for directory in path.split(":") if directory.startswith("/")]
    candidates = [name] if "/" in name else [posixpath.join(directory, name) for directory in directories]
    refused: OSError | None = None
    for candidate in candidates:
        file = posixpath.join(working_dir, candidate)
        try:
            _check_permission(root, file, identity)
        except OSError as error:
            # As execvp(3): what is there, and can't be executed, is the answer if nothing better is found.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                refused = refused or error
            continue
        _check_format(root, file, name)
        return
    if refused is not None:
        raise CommandError(NOT_EXECUTABLE, f"{name}: {_reason(refused)}")
    raise CommandError(NOT_FOUND, f"{name}: not found")


def _check_permission(root: int, file: str, identity: Identity) -> None:
    with opened(root, file) as found:
        status = os.fstat(found)
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & _execute_bits(status, identity):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _execute_bits(status: os.stat_result, identity: Identity) -> int:
    """Those of which one must be set. Root needs any, with CAP_DAC_OVERRIDE."""
    if identity.uid == 0:
        return stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
    if identity.uid == status.st_uid:
        return stat.S_IXUSR
    return stat.S_IXGRP if status.st_gid in (identity.gid, *identity.groups) else stat.S_IXOTH


def _check_format(root: int, file: str, name: str) -> None:
    try:
        head = read_start(root, file, _PROGRAM_HEADERS)
    except OSError:
        return
    if head.startswith(b"#!"):
        words = head[2:].partition(b"\n")[0].split()
        interpreter = words[0] if words else b""
    elif head.startswith(b"\x7fELF"):
        interpreter = _loader(head)
    else:
        raise CommandError(NOT_EXECUTABLE, f"{name}: exec format error")
    if interpreter and not _exists(root, os.fsdecode(interpreter)):
        raise CommandError(NOT_FOUND, f"{name}: its interpreter {os.fsdecode(interpreter)} is not found")


def _loader(head: bytes) -> bytes:
    """The dynamic loader that an ELF executable of 64 bits asks for: elf(5). Empty for none, or if it can't be told."""
    order = {b"\x01": "<", b"\x02": ">"}.get(head[5:6])
    if order is None or head[4:5] != b"\x02":
        return b""
    try:
        (offset,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
        for index in range(count):
            kind, _flags, start, _virtual, _physical, length = struct.unpack_from(
                f"{order}IIQQQQ", head, offset + index * size
            )
            if kind == _PT_INTERP:
                return head[start : start + length].rstrip(b"\0")
    except struct.error:
        pass
    return b""


def _exists(root: int, path: str) -> bool:
    try:
        with opened(root, path):
            return True
    except OSError:
        return False


def _reason(error: OSError) -> str:
    return (error.strerror or "").lower()
