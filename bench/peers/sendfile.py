"""The floor of reading a file: `sendfile` of the whole of it, once for every byte that the peer sends.

Run as `python -m bench.peers.sendfile FD PATH`, with the number of a listening socket and the file.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def serve(listener: socket.socket, path: Path) -> None:
    """Send the file whenever a peer asks, one peer after the other, until killed."""
    with path.open("rb") as file:
        size = path.stat().st_size
        while True:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(1):
                    sent = 0
                    while sent < size:
                        sent += os.sendfile(connection.fileno(), file.fileno(), sent, size - sent)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
