"""An agent to write unit tests against: in memory, and it does what the test says.

With a script, it answers by itself::

    script = {MessageType.PingRequest: lambda request: arcbox_v1.AgentPingResponse(message="pong")}
    async with memory_pair(script) as (client, agent):
        assert (await client.ping()).message == "pong"
    assert [request.type for request in agent.requests] == [MessageType.PingRequest]

Without one, the test takes each request by `agent.receive()` and answers it, or does not, as it likes.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.testing
from attrs import define, field, frozen

from arcbox_client._background import beside
from arcbox_client.client import AgentClient
from arcbox_protocol import EXCHANGES, ErrorReply, Frame, FrameDecoder, MessageType, encode_frame
from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from google.protobuf.message import Message

    Answer = Message | ErrorReply | bytes | None
    Script = Mapping[MessageType, Callable[["Request"], Answer | list[Answer]]]


@frozen
class Request:
    """A request as the agent sees it."""

    type: MessageType
    trace_id: str
    payload: bytes

    @property
    def message(self) -> Message:
        """The protobuf message in the payload; for a request that has none, ValueError."""
        message = EXCHANGES[self.type].request_message
        if message is None:
            raise ValueError(f"{self.type.name} has no protobuf message")
        return message.FromString(self.payload)


@define(eq=False)
class FakeAgent:
    """The agent's end of a byte stream."""

    _stream: trio.abc.Stream
    requests: list[Request] = field(init=False, factory=list)
    """All that came, in order."""

    _decoder: FrameDecoder = field(init=False, factory=FrameDecoder)
    _frames: deque[Frame] = field(init=False, factory=deque)

    async def receive(self) -> Request:
        """The next request. Raises `trio.EndOfChannel` when the client is gone."""
        while not self._frames:
            data = await self._stream.receive_some()
            if not data:
                raise trio.EndOfChannel("the client closed the connection")
            self._frames.extend(self._decoder.feed(data))
        frame = self._frames.popleft()
        request = Request(MessageType(frame.type), frame.trace_id, frame.payload)
        self.requests.append(request)
        return request

    async def reply(self, request: Request, answer: Answer = None) -> None:
        """Answer a request with the reply of its type: a message, a payload of raw bytes, nothing, or an error."""
        reply_type = EXCHANGES[request.type].reply
        if reply_type is None:
            raise ValueError(f"nothing answers {request.type.name}")
        if isinstance(answer, ErrorReply):
            await self.send(MessageType.Error, request.trace_id, answer.encode())
        else:
            payload = answer if isinstance(answer, bytes) else b"" if answer is None else answer.SerializeToString()
            await self.send(reply_type, request.trace_id, payload)

    async def send(self, message_type: int, trace_id: str, payload: bytes = b"") -> None:
        """Send any frame."""
        await self.send_bytes(encode_frame(message_type, trace_id, payload))

    async def send_bytes(self, data: bytes) -> None:
        """Send what is, or is no frame."""
        await self._stream.send_all(data)

    async def close(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def serve(self, script: Script) -> None:
        """Answer by a script until the client is gone: a function of the request per type.

        It returns one answer, or for a stream a list of them. Requests that the script does not have are answered 501;
        input to a session is only recorded.
        """
        while True:
            try:
                request = await self.receive()
                for answer in _answers(script, request):
                    await self.reply(request, answer)
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                return


@asynccontextmanager
async def memory_pair(script: Script | None = None) -> AsyncIterator[tuple[AgentClient, FakeAgent]]:
    """A client and the fake agent that it is connected to, in memory. With a script, the agent answers by itself."""
    client_side, agent_side = trio.testing.memory_stream_pair()
    agent = FakeAgent(agent_side)
    tasks = [] if script is None else [partial(agent.serve, script)]
    async with beside(*tasks), AgentClient.over(client_side) as client:
        yield client, agent


def _answers(script: Script, request: Request) -> list[Answer]:
    if request.type in script:
        answers = script[request.type](request)
        return answers if isinstance(answers, list) else [answers]
    if EXCHANGES[request.type].reply is None:
        return []
    return [ErrorReply(ErrorCode.NOT_SUPPORTED, f"the script has no {request.type.name}")]
