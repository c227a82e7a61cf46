"""The machine as probes see it: files, tools, vsock. Tests give them another one."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import Factory, frozen

from arcbox_agent.settings import Settings
from arcbox_agent.vsock_cid import read_cid

if TYPE_CHECKING:
    from collections.abc import Callable

_RUNTIME_DIRECTORY: Final = "/arcbox/runtime/bin"
"""Where the guest image has tools of its own, which come first."""

_SYSTEM_DIRECTORIES: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Looked through after PATH: a user's has no sbin."""

_FIRST_LINE: Final = 100
"""Characters of it that are kept."""


class ToolError(Exception):
    """A tool can't be run, or not within its deadline; the text says why."""


def bind_vsock() -> None:
    """Bind an AF_VSOCK socket, for a moment. Raises OSError where there is no AF_VSOCK."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        probe.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))


def file_system_type(path: Path) -> int | None:
    """f_type of statfs(2), which os.statvfs leaves out; its first field is that on every architecture."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).statfs(os.fsencode(path), buffer) != 0:
        return None
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)


def file_limit() -> int:
    """How many files this process may at most have open."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


@frozen(kw_only=True)
class Machine:
    """What probes look at."""

    root: Path = Path("/")
    """Where the file system begins that they see."""

    search_path: str = Factory(
        lambda: os.pathsep.join((_RUNTIME_DIRECTORY, os.environ.get("PATH", os.defpath), _SYSTEM_DIRECTORIES))
    )
    """The directories that have tools."""

    deadline: float = 2.0
    """Seconds that a tool may run."""

    settings: Settings = Factory(Settings)
    """Of the agent that shall run on it."""

    bind_vsock: Callable[[], None] = bind_vsock
    read_cid: Callable[[Path], int | None] = read_cid
    file_limit: Callable[[], int] = file_limit
    cpu_count: Callable[[], int | None] = os.cpu_count

    def path(self, absolute: str) -> Path:
        """Where a file of the machine is."""
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str:
        """What a file says; nothing when it can't be read."""
        try:
            return self.path(absolute).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def file_system(self, absolute: str) -> int | None:
        """The type of the file system that a path is on, or will be: f_type of statfs(2). None if it can't be told."""
        path = self.path(absolute)
        while not path.exists() and path != path.parent:
            path = path.parent
        return file_system_type(path)

    def find(self, tool: str) -> str | None:
        """The path of an executable."""
        return shutil.which(tool, path=self.search_path)

    def first_line(self, *command: str) -> str:
        """The first line that a command prints.

        Raises:
            ToolError: it can't be run, fails, or takes longer than `deadline`; whatever it started is killed then.
        """
        try:
            output, status = self._run(command)
        except OSError as error:
            raise ToolError(f"can't be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise ToolError(f"did not answer within {self.deadline:g} s") from error
        if status != 0:
            raise ToolError(f"fails with status {status}")
        line = output.decode("utf-8", "replace").strip().partition("\n")[0][:_FIRST_LINE]
        return "".join(character for character in line if character.isprintable())

    def _run(self, command: tuple[str, ...]) -> tuple[bytes, int]:
        with subprocess.Popen(  # noqa: S603  a tool that was found on this machine, asked for its version
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=self.deadline)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return output, process.returncode


def machine_in(root: Path, settings: Settings) -> Machine:
    """A machine whose files are below a directory, as those of an image that is being built; nothing of it runs."""
    directories = (_RUNTIME_DIRECTORY, *_SYSTEM_DIRECTORIES.split(os.pathsep))
    search_path = os.pathsep.join(str(root / directory.lstrip("/")) for directory in directories)
    return Machine(root=root, search_path=search_path, settings=settings)
