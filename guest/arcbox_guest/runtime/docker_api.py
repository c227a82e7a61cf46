"""GET requests to dockerd's API on its Unix socket, with a connection for each.

They are HTTP/1.0 (RFC 1945), whose replies end with the connection and have no chunks.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes of a reply, or of one event; Docker's own are some KiB."""


@frozen
class DockerApi:
    """Docker behind a socket.

    Where it is not there, or gives something that is no reply, all methods raise OSError, trio.BrokenResourceError or
    ValueError.
    """

    socket: str

    async def get(self, path: str) -> Any:  # noqa: ANN401  JSON
        """What there is at a path; None if there is nothing."""
        async with self.open(path) as reply:
            if reply.status == 404:
                return None
            if reply.status != 200:
                raise ValueError(f"docker answers {reply.status} to {path}")
            body = b""
            while line := await reply.next_line():
                body += line
            return json.loads(body)

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[Reply]:
        """A reply whose header has come."""
        with trio.socket.socket(trio.socket.AF_UNIX) as connected:
            await connected.connect(self.socket)
            stream = trio.SocketStream(connected)
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            reply = Reply(stream)
            await reply.receive_header()
            yield reply


@define(eq=False)
class Reply:
    """A reply of HTTP/1.0, to be read line by line."""

    _stream: trio.SocketStream
    status: int = field(init=False, default=0)
    _buffer: bytes = field(init=False, default=b"")

    async def receive_header(self) -> None:
        """Have the status, and go to the first line of the body."""
        status_line = await self.next_line()
        if not status_line.startswith(b"HTTP/1."):
            raise ValueError(f"docker's reply is not HTTP: {status_line[:80]!r}")
        self.status = int(status_line[9:12])
        while (await self.next_line()).strip():
            pass

    async def next_line(self) -> bytes:
        """The next line, with its end; empty at the end of the reply."""
        while b"\n" not in self._buffer:
            received = await self._stream.receive_some()
            if not received:
                last, self._buffer = self._buffer, b""
                return last
            self._buffer += received
            if len(self._buffer) > _LONGEST_LINE:
                raise ValueError("a line without an end")
        line, end, self._buffer = self._buffer.partition(b"\n")
        return line + end
