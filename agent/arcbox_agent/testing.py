"""A connection in memory, for unit tests of commands and of whatever lies between them and the wire.

async with memory_connection(guest=fake_guest()) as peer:
    await peer.send(MessageType.PingRequest, trace_id="a")
    frame = await peer.receive()
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from attrs import define, field
from trio.testing import memory_stream_pair

from arcbox_agent.connection import Connection
from arcbox_agent.settings import Limits
from arcbox_agent.transport import MemoryTransport
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Context, default_registry
from arcbox_protocol import MAX_LENGTH, Frame, FrameDecoder, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from arcbox_agent.transport import MemoryStream  # noqa: F401  ruff does not look into the brackets of a base class
    from arcbox_guest import Guest
    from arcbox_guest.sandboxes.manager import SandboxManager
    from arcbox_handlers import Registry

StreamT = TypeVar("StreamT", bound=trio.abc.Stream)

VERSION = "1.2.3-test"
"""The agent's version, as a connection in memory reports it."""


@define(eq=False)
class Peer(Generic[StreamT]):
    """The host's end of a connection."""

    stream: StreamT
    _decoder: FrameDecoder = field(init=False, factory=lambda: FrameDecoder(MAX_LENGTH))
    _frames: list[Frame] = field(init=False, factory=list)

    async def send(self, message_type: int, message: Message | bytes = b"", *, trace_id: str = "") -> None:
        """Send one frame."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        await self.stream.send_all(encode_frame(message_type, trace_id, payload))

    async def receive(self) -> Frame:
        """The next frame from the agent.

        Raises:
            EOFError: the agent ended the connection; when in the middle of a frame, it says so.
        """
        while not self._frames:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError("in the middle of a frame" if self._decoder.has_partial else "between frames")
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)


@define(eq=False)
class MemoryPeer(Peer["MemoryStream"]):
    """The host's end of a connection in memory."""

    connection: Connection
    """The agent's end."""


@asynccontextmanager
async def memory_connection(
    *, registry: Registry | None = None, guest: Guest | None = None, limits: Limits | None = None
) -> AsyncIterator[MemoryPeer]:
    """An agent that serves one connection in memory; the peer goes away with the context.

    Args:
        registry: the commands; those of the agent by default.
        guest: what they work on, its services run by the caller; by default a guest of fakes whose sandboxes work.
        limits: the settings of the connection.
    """
    context = Context(guest=guest or fake_guest(), version=VERSION)
    ours, theirs = memory_stream_pair()
    connection = Connection(
        MemoryTransport(ours), registry or default_registry(), context, limits or Limits(), "memory"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, connection, context.guest.sandboxes if guest is None else None)
        try:
            yield MemoryPeer(theirs, connection)
        finally:
            theirs.send_stream.close()
            theirs.receive_stream.close()


async def _serve(connection: Connection, sandboxes: SandboxManager | None) -> None:
    async with trio.open_nursery() as services:
        if sandboxes is not None:
            services.start_soon(sandboxes.run)
        await connection.serve()
        services.cancel_scope.cancel()
