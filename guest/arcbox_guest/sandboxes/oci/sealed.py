"""The program of an OCI runtime, in memory that nobody can change.

A process in a sandbox can get hold of the file that the runtime's processes execute, so it must not be the one on disk
(CVE-2019-5736). crun and runc see to that: each call first copies the program into a sealed file in memory, and then
executes that. If it is such a file already, which they tell by its seals (memfd_create(2)), they go on at once: that
spares a fourth of the time of an exec.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from typing import Self

_MFD_EXEC: Final = 0x10
"""Since Linux 6.3, where executable memory has to be asked for."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Just these, or the runtimes do not know it."""

_ELF: Final = b"\x7fELF"


@frozen
class SealedProgram:
    """A copy of a program, for as long as it is not closed."""

    _descriptor: int

    @classmethod
    def of(cls, path: str) -> Self | None:
        """Copy a program; None for a script, which may want to know where it lies, or where there is no such memory."""
        with open(path, "rb") as program:
            if program.read(len(_ELF)) != _ELF:
                return None
            try:
                descriptor = _executable_memory()
            except OSError:
                return None
            try:
                _copy(program.fileno(), descriptor)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            except OSError:
                os.close(descriptor)
                return None
        return cls(descriptor)

    @property
    def path(self) -> str:
        """Where any process of this machine can execute it. Not below /proc/self: their own descriptors are others."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let go of it: who executes it already has it still."""
        os.close(self._descriptor)


def _executable_memory() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("oci-runtime", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create("oci-runtime", flags)


def _copy(source: int, target: int) -> None:
    size, offset = os.fstat(source).st_size, 0
    while offset < size:
        copied = os.sendfile(target, source, offset, size - offset)
        if not copied:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset += copied
