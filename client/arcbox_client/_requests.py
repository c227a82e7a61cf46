"""How requests of all kinds are carried out: deadlines, replies, streams."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import trio
from attrs import evolve, frozen

from arcbox_client._replies import ReplyStream, check_reply, parse_reply
from arcbox_client.errors import TimedOutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Self

    from google.protobuf.message import Message

    from arcbox_client._connection import Connection
    from arcbox_client._replies import ReplyT
    from arcbox_protocol import Frame, MessageType

_SLOW_TIMEOUT = 300.0
"""Seconds for requests that wait for something slow in the guest."""


@frozen(eq=False, kw_only=True)
class Requests:
    """What the methods of `AgentClient` are made of."""

    _connection: Connection
    _timeout: float
    _slow_timeout: float = _SLOW_TIMEOUT
    _connected: Callable[[], AbstractAsyncContextManager[Connection]] | None = None
    """How to make a connection for one stream; None where streams share this one."""

    def within(self, seconds: float) -> Self:
        """The same client with another deadline for each request: `await client.within(2).ping()`.

        It holds for slow requests too; `math.inf` is no deadline.
        """
        return evolve(self, timeout=seconds, slow_timeout=seconds)

    async def _call(
        self, request: MessageType, message: Message | None, reply: type[ReplyT], *, slow: bool = False
    ) -> ReplyT:
        return parse_reply(await self._exchange(request, message, slow=slow), request, reply)

    async def _command(self, request: MessageType, message: Message, *, slow: bool = False) -> None:
        """For requests whose reply is empty."""
        check_reply(await self._exchange(request, message, slow=slow), request)

    async def _exchange(self, request: MessageType, message: Message | None, *, slow: bool = False) -> Frame:
        return await self._exchange_over(self._connection, request, message, slow=slow)

    async def _exchange_over(
        self, connection: Connection, request: MessageType, message: Message | None, *, slow: bool = False
    ) -> Frame:
        payload = b"" if message is None else message.SerializeToString()
        trace_id = connection.new_trace_id()
        seconds = self._slow_timeout if slow else self._timeout
        if seconds == math.inf:
            return await connection.request(request, trace_id, payload)
        with trio.move_on_after(seconds):
            return await connection.request(request, trace_id, payload)
        raise TimedOutError(f"{request.name}: no reply within {seconds:g} s (trace id {trace_id})")

    @asynccontextmanager
    async def _stream(
        self, request: MessageType, message: Message, reply: type[ReplyT]
    ) -> AsyncIterator[tuple[ReplyStream[ReplyT], Connection, str]]:
        """Begin a stream: its replies, and the connection and trace id for its input."""
        payload = message.SerializeToString()
        async with self._connected() if self._connected else nullcontext(self._connection) as connection:
            trace_id = connection.new_trace_id()
            with connection.stream(trace_id) as inbox:
                await connection.send(request, trace_id, payload)
                yield ReplyStream(inbox, request, reply), connection, trace_id
