"""A program: forks a parent for every detached process, which keeps its exit status and outlives the agent.

    python starter.py SOCKET

SOCKET is an open socket of the type SOCK_SEQPACKET; `starting` is the other end. A packet of it comes with two open
files: cgroup.procs of the group that the parent shall be in, and the parent's gate, a socket of the same type. The
parent's process id and pidfd are sent through the gate at once, and the gate then takes one packet: JSON that says what
to start, with the process's stdin, stdout and stderr, and its configuration, as open files. Another packet through the
gate says that it is on record that the process is being started: from then on it is, whoever is killed. If the gate is
closed before, nothing is started.

Debian's conmon was measured, and is slower: it is another program to execute, by a shell that waits at the gate, while
the fork of a small process costs a millisecond. In its group, which takes the kernel up to 15 ms, the parent is before
the agent knows what is to be started. As a subreaper (prctl(2)) it gets the process when the runtime has ended, so
nothing but the process has its standard files open.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_prctl = ctypes.CDLL(None).prctl  # found here: what a parent looks for is looked for by each of them
_PACKET: Final = 64 * 1024
"""Bytes of a packet, at most."""

_SIGNALLED: Final = 128

_UNSTARTED: Final = b"unstarted"
"""What the file `exit` of a session has when the runtime could not start the process."""


def serve(starter: socket.socket) -> None:
    """Fork parents until the agent is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for parents: each says itself what it has seen
    while True:
        packet, files, _, _ = socket.recv_fds(starter, _PACKET, 2, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return
        procs, gate = files
        pid = os.fork()
        if pid == 0:
            starter.close()
            _be_parent(procs, socket.socket(fileno=gate))
        pidfd = os.pidfd_open(pid)
        with socket.socket(fileno=gate) as answer:
            socket.send_fds(answer, [str(pid).encode()], [pidfd])
        os.close(pidfd)
        os.close(procs)


def _be_parent(procs: int, gate: socket.socket) -> None:
    """Does not return."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.write(procs, b"0")
        os.close(procs)
        _be_protected_no_more()
        packet, files, _, _ = socket.recv_fds(gate, _PACKET, 4, socket.MSG_CMSG_CLOEXEC)
        if packet:
            order = json.loads(packet)
            os.chdir(order["directory"])
            open("begun", "xb").close()  # fails when the next agent was there before: the session is gone, or will be
            with suppress(OSError):  # the agent may be gone, and nothing depends on it any more
                gate.send(b"begun")
            gate.close()
            exit_status = _run(order["argv"], files)
            with open("exit", "xb", buffering=0) as file:
                file.write(exit_status)
    finally:
        os._exit(0)  # what the starter is in the midst of is not this process's


def _be_protected_no_more() -> None:
    """Be no more worth keeping than any process of the guest, and so all that is started."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as adjustment:
        if int(adjustment.read()) < 0:  # the agent's own, inherited; to lower one takes a capability
            adjustment.write(b"0")


def _run(argv: list[str], files: list[int]) -> bytes:
    """Run a process to its end; its exit code, or 128 + n when signal n killed it.

    Args:
        argv: the runtime's command line.
        files: what the runtime gets as 0, 1, 2 and 3.
    """
    try:
        runtime = os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)],
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
        )
    except OSError as error:
        os.write(files[2], f"{argv[0]}: {error.strerror}\n".encode())
        return _UNSTARTED
    for file in files:
        os.close(file)
    if _wait(runtime) != 0:
        return _UNSTARTED
    with open("pid", "rb", buffering=0) as pid:
        process = int(pid.read())
    return str(_wait(process)).encode()


def _wait(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else _SIGNALLED - code


if __name__ == "__main__":
    gc.disable()
    gc.freeze()  # so that parents share its memory
    serve(socket.socket(fileno=int(sys.argv[1])))
