"""A socket path short enough, and agents of the test's own behind real Unix sockets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field

from arcbox_client.testing import FakeAgent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, unlike tmp_path: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="arcbox-host-") as path:
        yield Path(path)


@define(eq=False)
class Listener:
    """A stand-in for an agent, or for a VMM, on a Unix socket: every connection is served by `serve`."""

    path: Path
    serve: Callable[[trio.SocketStream], Awaitable[None]] | None = None
    connections: list[trio.SocketStream] = field(factory=list)

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def serve_agent(self, serve: Callable[[FakeAgent], Awaitable[None]]) -> None:
        async def serve_stream(stream: trio.SocketStream) -> None:
            await serve(FakeAgent(stream))

        self.serve = serve_stream

    async def handle(self, stream: trio.SocketStream) -> None:
        self.connections.append(stream)
        async with stream:
            if self.serve is not None:
                await self.serve(stream)


@pytest.fixture
async def listener(directory: Path) -> AsyncIterator[Listener]:
    listener = Listener(directory / "agent.sock")
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(listener.path))
        listening.listen(64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, listener.handle, [trio.SocketListener(listening)])
            yield listener
            nursery.cancel_scope.cancel()
