"""A program: a client that runs a process with `runc exec --detach`, and ends with the process's exit code.

    python waiting_client.py CONFIGURATION PID_FILE RUNC [ARGUMENT]...

CONFIGURATION is an open file, to be read to its end before anything is started.

Without --detach, runc (1.1) relays what the process writes, and does not end before whoever the process left behind has
closed it; nor does it send a terminal's master. With it, the exit code goes to whoever adopts the process: so that is
us.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36

_FAILED: Final = 255
"""As runtimes say it."""


def run(configuration: int, pid_file: str, argv: list[str]) -> int:
    """Run a process; its exit code, or 128 + n when signal n killed it.

    Args:
        configuration: an open file; runc gets what is in it under the same number.
        pid_file: where runc is to write the process id.
        argv: runc's command line, which has --detach.
    """
    _hand_on(configuration)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    runc = os.posix_spawn(argv[0], argv, os.environ)
    _let_go()
    exit_code = _wait(runc)
    if exit_code != 0:
        return exit_code
    with open(pid_file, encoding="ascii") as file:
        process = int(file.read())
    os.unlink(pid_file)
    return _wait(process)


def _hand_on(configuration: int) -> None:
    with open(configuration, "rb", closefd=False) as file:
        content = file.read()
    copy = os.memfd_create("configuration")
    with open(copy, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(copy, 0, os.SEEK_SET)
    os.dup2(copy, configuration, inheritable=True)


def _let_go() -> None:
    """Have nothing open that is the process's, or it would not be seen to close it."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    try:
        code = run(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except (OSError, ValueError):
        code = _FAILED
    os._exit(code)  # nothing is left to be cleaned up, and the agent waits
