"""Whether a command can be executed, asked before it is: runtimes give 255 or 1 for every reason not to.

Asked of the sandbox's files as they are now, so a race with what runs inside is lost gracefully: the runtime's own
exit code and message are the answer then.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import posixpath
import resource
import stat
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_guest import linux
from arcbox_guest.sandboxes.oci.root_files import opened, read_start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arcbox_guest.sandboxes.oci.users import Identity

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR)

_SCRIPT_HEAD: Final = 256
"""Bytes of a script that the kernel looks at: BINPRM_BUF_SIZE in linux/binfmts.h."""

_INTERPRETERS: Final = 5
"""Of a script, whose interpreter may be a script as well: with more, the kernel gives up."""

_PT_INTERP: Final = 3
_PROGRAM_HEADERS: Final = 64 * 1024
"""Bytes from the beginning of an executable in which its program headers are looked for."""


_ELF_HEADER: Final = 52
"""Bytes, at least: of 32 bits."""

_MACHINES: Final = {"x86_64": (62, 3), "aarch64": (183, 40)}
"""What the kernel of a machine executes, as e_machine has it: its own programs, and those of 32 bits."""

_LONGEST_ARGUMENT: Final = 32 * mmap.PAGESIZE
"""Bytes of one with its NUL, as of the rest below: execve(2), "Limits on size of arguments and environment"."""

_STACK_FOR_ARGUMENTS: Final = (128 * 1024, 6 * 2**20)
"""At least and at most, in bytes; in between it is a quarter of the stack."""

_OTHER_FORMATS: Final = Path("/proc/sys/fs/binfmt_misc")
"""With a file for every kind of program that something is registered for: Rosetta, say, or qemu."""


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
            if error.errno not in _MISSING:
                refused = refused or error
            continue
        _check_format(root, file, name, working_dir=working_dir, identity=identity)
        return
    if refused is not None:
        raise CommandError(NOT_EXECUTABLE, f"{name}: {_reason(refused)}")
    raise CommandError(NOT_FOUND, f"{name}: not found")


def check_size(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Find out whether a command line and its environment are too long for the kernel.

    Raises:
        CommandError: they are.
    """
    sizes = [len(text.encode()) + 1 for text in (*argv, *(f"{name}={value}" for name, value in environment.items()))]
    stack, _hard = resource.getrlimit(resource.RLIMIT_STACK)
    least, most = _STACK_FOR_ARGUMENTS
    room = most if stack == resource.RLIM_INFINITY else max(least, min(stack // 4, most))
    if max(sizes) > _LONGEST_ARGUMENT or sum(sizes) + len(sizes) * struct.calcsize("P") > room:
        raise CommandError(NOT_EXECUTABLE, f"{argv[0]}: argument list too long")


def _check_permission(root: int, file: str, identity: Identity) -> None:
    # Root of a sandbox may look wherever the agent may.
    acting = linux.acting_as(identity.uid, identity.gid, identity.groups) if identity.uid else nullcontext()
    with acting, opened(root, file) as found:
        mode = os.fstat(found).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        linux.check_executable(found)


def _check_format(root: int, file: str, name: str, *, working_dir: str, identity: Identity) -> None:
    for _ in range(_INTERPRETERS):
        try:
            head = read_start(root, file, _PROGRAM_HEADERS)
        except OSError:
            return
        is_script = head.startswith(b"#!")
        interpreter = os.fsdecode(_script_interpreter(head) if is_script else _loader(head))
        if not (interpreter if is_script else _is_executable(head)):
            raise CommandError(NOT_EXECUTABLE, f"{name}: exec format error")
        if not interpreter:
            return
        file = posixpath.join(working_dir, interpreter)
        _check_interpreter(root, file, name, interpreter, identity)
        if not is_script:
            return
    raise CommandError(NOT_EXECUTABLE, f"{name}: too many levels of interpreters")


def _check_interpreter(root: int, file: str, name: str, interpreter: str, identity: Identity) -> None:
    shown = interpreter if interpreter.isprintable() else repr(interpreter)  # a line that ends as on Windows, say
    try:
        _check_permission(root, file, identity)
    except OSError as error:
        if error.errno in _MISSING:
            raise CommandError(NOT_FOUND, f"{name}: its interpreter {shown} is not found") from error
        raise CommandError(NOT_EXECUTABLE, f"{name}: its interpreter {shown}: {_reason(error)}") from error


def _is_executable(head: bytes) -> bool:
    """Whether a file that is no script can be executed, by its format. Of other machines' programs, it may be."""
    if not head.startswith(b"\x7fELF") or len(head) < _ELF_HEADER:
        return _others_are_executed() is True
    native = _MACHINES.get(platform.machine())
    if native is None or int.from_bytes(head[18:20], "little") in native:
        return True
    return _others_are_executed() is not False


def _others_are_executed() -> bool | None:
    """Whether the kernel was told of other formats; None where that can't be seen."""
    try:
        names = set(os.listdir(_OTHER_FORMATS))
    except FileNotFoundError:
        return False
    return names != {"register", "status"} if names else None


def _script_interpreter(head: bytes) -> bytes:
    """As the kernel finds it: only blanks and the end of the line end it. Empty for none."""
    line = head[2:_SCRIPT_HEAD].partition(b"\n")[0].partition(b"\0")[0]
    return line.replace(b"\t", b" ").strip(b" ").partition(b" ")[0]


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
                return head[start : start + length].partition(b"\0")[0]
    except (struct.error, OverflowError):  # they lie elsewhere
        pass
    return b""


def _reason(error: OSError) -> str:
    return (error.strerror or "").lower()
