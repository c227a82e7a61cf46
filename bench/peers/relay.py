"""The floor of a proxy: a relay of blocking calls to splice(2), with a thread for each direction.

Run as `python -m bench.peers.relay FD TARGET`, with the number of a listening socket and the path of a Unix socket.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading

_PIPE = 1024 * 1024


def serve(listener: socket.socket, target: str) -> None:
    """Relay any number of connections, until killed."""
    while True:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(target)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_relay, args=(source, sink), daemon=True).start()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE)
    while inside := os.splice(source.fileno(), writer, _PIPE):
        while inside:
            inside -= os.splice(reader, sink.fileno(), inside)
    sink.shutdown(socket.SHUT_WR)
    os.close(reader)
    os.close(writer)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
