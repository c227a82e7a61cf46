"""The floor of every round trip: blocking calls, one connection at a time, no scheduler, no framing.

Run as `python -m bench.peers.blocking_echo FD`, with the number of a listening socket.
"""

from __future__ import annotations

import socket
import sys


def serve(listener: socket.socket) -> None:
    """Say back whatever one peer after the other says, until killed."""
    while True:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
