"""A socket that leads to an agent, and whose connections can be cut: the network between a host and its guest."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from arcbox_client._agent_process import RunningAgent


@define(eq=False)
class Relay:
    """Connections to the agent that it leads to now."""

    path: Path
    agent: RunningAgent
    cuts: int = field(init=False, default=0)
    """How many connections were cut."""

    _connections: set[trio.CancelScope] = field(init=False, factory=set)

    @property
    def address(self) -> str:
        """What `connect` takes."""
        return f"unix:{self.path}"

    def cut(self) -> None:
        """Cut all connections, in the middle of whatever comes."""
        self.cuts += len(self._connections)
        for connection in self._connections:
            connection.cancel()

    async def serve(self, near: trio.SocketStream) -> None:
        """Relay one connection until either end closes it, or it is cut."""
        async with near, trio.open_nursery() as nursery:
            self._connections.add(nursery.cancel_scope)
            try:
                far = await trio.open_unix_socket(self.agent.address.removeprefix("unix:"))
                async with far, trio.open_nursery() as pumps:
                    pumps.start_soon(_pump, near, far, pumps.cancel_scope)
                    pumps.start_soon(_pump, far, near, pumps.cancel_scope)
            except OSError:
                pass  # no agent listens there now
            finally:
                self._connections.discard(nursery.cancel_scope)


async def _pump(source: trio.SocketStream, target: trio.SocketStream, ending: trio.CancelScope) -> None:
    try:
        async for data in source:
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    ending.cancel()


@asynccontextmanager
async def relayed(path: Path, agent: RunningAgent) -> AsyncIterator[Relay]:
    """A relay on a Unix socket, for as long as the context lasts."""
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    relay = Relay(path, agent)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, relay.serve, [trio.SocketListener(listening)])
        yield relay
        nursery.cancel_scope.cancel()
