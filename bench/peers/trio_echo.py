"""Trio as its documentation teaches it: `serve_listeners`, and one `SocketStream` a connection.

Run as `python -m bench.peers.trio_echo FD`, with the number of a listening socket.
"""

from __future__ import annotations

import socket
import sys

import trio


async def echo(stream: trio.SocketStream) -> None:
    """Say back whatever the peer says, until it closes."""
    async for data in stream:
        await stream.send_all(data)


async def serve(listener: socket.socket) -> None:
    """Serve any number of peers, until killed."""
    await trio.serve_listeners(echo, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


if __name__ == "__main__":
    trio.run(serve, socket.socket(fileno=int(sys.argv[1])))
