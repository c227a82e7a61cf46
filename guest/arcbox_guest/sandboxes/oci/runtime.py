"""Calls to the OCI runtime, crun or runc, each with a deadline."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.child import Child
from arcbox_guest.errors import GuestError, TimedOutError
from arcbox_guest.sandboxes.oci import waiting_client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

    from arcbox_guest.sandboxes.oci.namespace import MountNamespace

_CREATING: Final = 20.0
"""Seconds in which a sandbox's init must run: usually 0.02."""

_GATE: Final = ("/bin/sh", "-c", 'read go && exec "$@" </dev/null', "sh")
"""Executes a command once it is given a line. The client of a new sandbox has to be in its cgroup before it starts
anything, and a client that was merely started is not held up by anything else."""

_LOG: Final = 64 * 1024
"""Bytes of its log that are looked at."""


_MFD_EXEC: Final = 0x10
"""Since Linux 6.3, where executable memory has to be asked for."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Just these, or the runtimes do not know it."""

_ELF: Final = b"\x7fELF"


@frozen
class SealedProgram:
    """A copy of a program in memory that nobody can change, for as long as it is not closed.

    A process in a sandbox can get hold of the file that the runtime's processes execute, so it must not be the one on
    disk (CVE-2019-5736). crun and runc see to that: each call first copies the program into a sealed file in memory,
    and then executes that. If it is such a file already, which they tell by its seals (memfd_create(2)), they go on at
    once: that spares a fourth of the time of an exec.
    """

    descriptor: int

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
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def close(self) -> None:
        """Let go of it: who executes it already has it still."""
        os.close(self.descriptor)


@define(eq=False)
class Runtime:
    """An OCI runtime."""

    path: str
    _state: Path
    """Where it keeps what it knows."""

    _namespace: MountNamespace
    _sealed: SealedProgram | None = field(init=False)

    @_sealed.default
    def _seal(self) -> SealedProgram | None:
        return SealedProgram.of(self.path)

    @property
    def _program(self) -> str:
        """What is executed."""
        return self.path if self._sealed is None else self._sealed.path

    @property
    def sealed(self) -> int | None:
        """The sealed program, an open file; None if there is none."""
        return None if self._sealed is None else self._sealed.descriptor

    def close(self) -> None:
        """Call it no more."""
        if self._sealed is not None:
            self._sealed.close()

    @property
    def _is_runc(self) -> bool:
        """Whether it is runc, or one that is called so; all others are taken for crun."""
        return os.path.basename(self.path) == "runc"

    def is_at(self, pid: int) -> bool:
        """Whether a process is the runtime itself, by its program. Others may well execute memory, too."""
        try:
            executed = os.stat(f"/proc/{pid}/exe")
            return any(os.path.samestat(executed, os.stat(program)) for program in {self._program, self.path})
        except OSError:
            return False

    async def run(self, sandbox_id: str, bundle: Path, entered: Callable[[int], None]) -> int:
        """Start the sandbox that a bundle describes; the process id of its init.

        Args:
            sandbox_id: the sandbox.
            bundle: a directory with its config.json.
            entered: called with the process id of the runtime's client before that starts anything.

        Raises:
            GuestError: it can't be.
        """
        pid_file = bundle / "init.pid"
        arguments = ["run", "--detach", "--pid-file", str(pid_file), "--bundle", str(bundle), sandbox_id]
        await self._call(arguments, _CREATING, entered)
        try:
            return int(pid_file.read_text())
        except (OSError, ValueError) as error:
            raise GuestError(f"{self.path} has not told the process id of the sandbox's init") from error

    def exec_argv(
        self, sandbox_id: str, process: int, *, pid_file: str, cgroup: str | None, console_socket: str
    ) -> list[str]:
        """The command line of a client that runs a process, and ends with its exit code.

        Args:
            sandbox_id: the sandbox.
            process: an open file with the process's configuration. The client starts nothing before it has read it all.
            pid_file: a file that the client may need.
            cgroup: below the sandbox's, in cgroup2; None to leave the process in the sandbox's.
            console_socket: where the master of the process's terminal is to be sent; empty for none.
        """
        argv = [self._program, "--root", str(self._state), "exec", "--process", f"/proc/self/fd/{process}"]
        if self._is_runc:
            argv = [sys.executable, "-I", "-S", waiting_client.__file__, str(process), pid_file, *argv]
            argv += ["--detach", "--pid-file", pid_file]
        return [*argv, *_options(cgroup, console_socket), sandbox_id]

    def detached_argv(self, sandbox_id: str, *, cgroup: str | None, console_socket: str) -> list[str]:
        """The command line of a client that starts a process, writes its id into the file pid, and ends.

        It is for those who have `sealed` under the same number, and execute it when the agent is gone, too. The
        arguments are those of `exec_argv`; file 3 has the process's configuration.
        """
        program = self.path if self.sealed is None else f"/proc/self/fd/{self.sealed}"
        argv = [program, "--root", str(self._state), "exec", "--detach", "--pid-file", "pid"]
        argv += ["--process", "/proc/self/fd/3", *_options(cgroup, console_socket)]
        return [*argv, sandbox_id]

    async def _call(self, arguments: Sequence[str], deadline: float, entered: Callable[[int], None]) -> None:
        log = os.memfd_create("log", os.MFD_CLOEXEC)
        try:
            child = await self._namespace.run(self._start, arguments, log, entered)
            exit_code = await _finished(child, deadline)
            if exit_code is None:
                raise TimedOutError(f"{self.path} {arguments[0]} did not end in {deadline:.0f} seconds")
            if exit_code != 0:
                message = _message(os.pread(log, _LOG, 0)) or f"it ended with {exit_code}"
                raise GuestError(f"{self.path} {arguments[0]}: {message}")
        finally:
            os.close(log)

    def _start(self, arguments: Sequence[str], log: int, entered: Callable[[int], None]) -> Child:
        # Not to its stderr: the sandbox's init inherits that, and with it whatever in there may look at its files.
        options = ("--root", str(self._state), "--log", f"/proc/self/fd/{log}", "--log-format", "json")
        return _start_behind_gate([self._program, *options, *arguments], log, entered)


def _start_behind_gate(argv: Sequence[str], log: int, entered: Callable[[int], None]) -> Child:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = Child.start([*_GATE, *argv], stdin=reader, pass_fds=(log,))
        try:
            entered(child.pid)
            os.write(writer, b"go\n")
        except OSError:
            child.discard()
            raise
        return child
    finally:
        os.close(reader)
        os.close(writer)


def _options(cgroup: str | None, console_socket: str) -> list[str]:
    options = [] if cgroup is None else ["--cgroup", cgroup]
    return [*options, "--console-socket", console_socket] if console_socket else options


async def _finished(child: Child, deadline: float) -> int | None:
    """The exit code of a child, which is gone afterwards; None if it did not end in time."""
    try:
        with trio.move_on_after(deadline):
            return await child.wait()
        return None
    finally:
        with trio.CancelScope(shield=True):  # has a deadline of its own
            await child.close()


def _message(log: bytes) -> str:
    """What a runtime says of its failure: the last line of its log that is an error."""
    for line in reversed(log.splitlines()):
        with suppress(ValueError, TypeError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") == "error":
                return str(entry["msg"]).strip()
    return ""


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
