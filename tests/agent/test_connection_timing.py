"""The same bytes mean the same whenever they come: one task reads them, or the other, as it happens."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_agent.connection import Connection
from arcbox_agent.settings import Limits
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Context, Registry
from arcbox_handlers.sandbox_streams import SandboxExec, SandboxRun
from arcbox_handlers.sandboxes import SandboxInspect
from arcbox_handlers.system import Ping
from arcbox_protocol import ErrorReply, FrameDecoder, encode_frame, sandbox_v1
from arcbox_protocol import MessageType as T

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_handlers import OpenFile
    from arcbox_protocol import Buffer


class Trickle:
    """A transport whose peer sends these pieces; each None is a moment at which there is nothing yet."""

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.sent = bytearray()
        """By the agent."""

        self.peer_left = trio.Event()
        self._pieces = deque(pieces)

    def receive_nowait(self) -> bytes | None:
        if self._pieces:
            return self._pieces.popleft()
        return b"" if self.peer_left.is_set() else None

    async def readable(self) -> None:
        if self._pieces:
            await trio.lowlevel.checkpoint()
        else:
            await self.peer_left.wait()

    def interrupt(self) -> None:
        """Nothing: nobody drains this connection."""

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        self.sent += b"".join(parts)
        return sum(map(len, parts))

    async def send(self, data: Buffer) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    async def send_file(self, file: OpenFile) -> int:
        raise NotImplementedError

    async def wait_hangup(self) -> None:
        await self.peer_left.wait()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        self.peer_left.set()

    def close(self) -> None:
        self.peer_left.set()


@frozen
class Request:
    """A request, and what it is answered with: the type, and the code of an error. Some are not answered."""

    type: int
    payload: bytes
    reply: tuple[int, int | None] | None


REGISTRY = Registry([Ping, SandboxInspect, SandboxRun, SandboxExec])

REQUESTS = {
    "quick": Request(T.PingRequest, b"", (T.PingResponse, None)),
    "quick and refused": Request(T.PingRequest, b"\xff", (T.Error, 400)),
    "unknown": Request(0x7777, b"abc", (T.Error, 400)),
    "not supported": Request(T.SandboxCheckpointRequest, b"", (T.Error, 501)),
    "in turn": Request(T.SandboxInspectRequest, b"", (T.Error, 404)),
    "stream": Request(T.SandboxRunRequest, sandbox_v1.RunRequest(cmd=["true"]).SerializeToString(), (T.Error, 404)),
    "input for nobody": Request(T.SandboxExecInput, b"data", None),
}

ENDS: dict[bytes, int | None] = {
    b"": None,
    b"\0": 504,
    encode_frame(T.PingRequest, "never", b"\x0a\x01x")[:-1]: 504,
    b"\0\0\0\1": 400,
    b"\xff\xff\xff\xff": 413,
    b"\0\0\0\x08\0\1\0\x50ab": 400,
}
"""What comes last, and the code of the error that answers it."""


async def replies(pieces: Sequence[bytes | None]) -> list[tuple[int, int | None, str]]:
    """All that the agent says to these bytes: types, codes of errors, and trace ids."""
    transport, guest = Trickle(pieces), fake_guest()
    context = Context(guest=guest, version="1.2.3")
    connection = Connection(transport, REGISTRY, context, Limits(frame_timeout=30), "trickle")
    async with trio.open_nursery() as services:
        services.start_soon(guest.sandboxes.run)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve)
            await trio.sleep(100)
            transport.peer_left.set()
        services.cancel_scope.cancel()
    return [
        (frame.type, ErrorReply.decode(frame.payload).code if frame.type == T.Error else None, frame.trace_id)
        for frame in FrameDecoder().feed(transport.sent)
    ]


@st.composite
def pieces_of(draw: st.DrawFn, frames: Sequence[bytes]) -> list[bytes | None]:
    """Frames as they may come: some stuck together, some in parts, with pauses or without."""
    pieces: list[bytes | None] = []
    for frame in frames:
        cut = draw(st.just(0) | st.integers(0, len(frame)))
        for part in (frame[:cut], frame[cut:]):
            how = draw(st.sampled_from(["stuck", "next", "later"]))
            if how == "stuck" and pieces and pieces[-1] is not None:
                pieces[-1] += part
            elif part:
                pieces += [None, part] if how == "later" else [part]
    return pieces


@given(st.data())
def test_the_same_bytes_get_the_same_replies_whenever_they_come(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(REQUESTS)), max_size=8))
    end = data.draw(st.sampled_from(list(ENDS)))
    frames = [encode_frame(REQUESTS[kind].type, str(i), REQUESTS[kind].payload) for i, kind in enumerate(kinds)]
    pieces = data.draw(pieces_of([*frames, end]))
    expected = [(*reply, str(i)) for i, kind in enumerate(kinds) if (reply := REQUESTS[kind].reply) is not None]
    if ENDS[end] is not None:
        expected.append((T.Error, ENDS[end], ""))
    # A stream runs beside the other requests: its replies may come after those to later ones.
    streams = {str(i) for i, kind in enumerate(kinds) if kind == "stream"}
    said = trio.run(replies, pieces, clock=MockClock(autojump_threshold=0))
    assert sorted(said, key=lambda reply: reply[2]) == sorted(expected, key=lambda reply: reply[2])
    assert [reply for reply in said if reply[2] not in streams] == [
        reply for reply in expected if reply[2] not in streams
    ]
