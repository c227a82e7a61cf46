"""The floor of a process's output: what it writes to a pipe, spliced into a socket, by a process for each byte asked.

Run as `python -m bench.peers.splice FD COMMAND...`, with the number of a listening socket.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PIPE = 256 * 1024


def serve(listener: socket.socket, command: Sequence[str]) -> None:
    """Run the command whenever a peer asks, one peer after the other, until killed."""
    while True:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1):
                _relay(command, connection.fileno())


def _relay(command: Sequence[str], to: int) -> None:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        while os.splice(pipe, to, _PIPE):
            pass


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
