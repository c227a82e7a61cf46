"""The answering half of a connection: batches of frames in, commands carried out, replies to the writer."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from arcbox_agent.first_wait import with_first_wait
from arcbox_agent.request_context import Activity, current_activity
from arcbox_handlers import Acknowledgement, CommandError, FileReply, StreamCommand, UnaryCommand, error_reply
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType, encode_frame
from arcbox_protocol.errors import ErrorCode, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from arcbox_agent.reader import FrameReader
    from arcbox_agent.streams import OpenStream, Streams
    from arcbox_agent.writer import FrameWriter
    from arcbox_handlers import Context, QuickCommand, Registry, Route
    from arcbox_protocol import Frame

log = logging.getLogger(__name__)

_REPLIES_PER_WRITE = 64
"""Quick requests of one batch answered in a row before the other connections get their turn."""

_BATCHES_PER_TURN = 16
"""Batches answered without waiting before the other connections get their turn."""


@define(eq=False)
class Dispatcher:
    """Answers the requests of one connection: in the order they came, but for slow commands and streams."""

    _registry: Registry
    _context: Context
    _reader: FrameReader
    _writer: FrameWriter
    _streams: Streams
    _nursery: trio.Nursery
    """Where streams and slow commands run."""

    _beside: trio.Semaphore
    """How many slow commands may still run beside the others."""

    _activity: Activity
    """Of the task that calls `run`."""

    _routes: Mapping[int, Route] = field(init=False)
    _times_quick: bool = field(init=False, factory=partial(log.isEnabledFor, logging.DEBUG))
    """Whether the log wants to know of quick requests: asked once, since there are so many."""

    _overtakable: set[str] = field(init=False, factory=set)
    """The trace ids of the slow commands that run beside the others."""

    _dropped_for: str | None = field(init=False, default=None)
    """The trace id of the input that was dropped last."""

    @_routes.default
    def _routes_of_registry(self) -> Mapping[int, Route]:
        return self._registry.routes

    async def run(self, batches: trio.MemoryReceiveChannel[list[Frame]]) -> None:
        """Answer all that comes through the channel, until the reader closes it."""
        reader, writer, glances = self._reader, self._writer, 0
        with batches, suppress(trio.EndOfChannel):
            while True:
                if reader.lent and reader.glance():
                    batch = batches.receive_nowait()
                    glances += 1
                    if glances % _BATCHES_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
                elif not reader.lent:  # perhaps since that glance
                    batch = await self._from_task(batches)
                else:
                    try:
                        await reader.readable()
                    except trio.ClosedResourceError:  # `lent` is false now
                        continue
                    if not reader.look():
                        continue
                    batch = batches.receive_nowait()
                reply = self._reply_at_once(batch)
                if reply is None:
                    await self._answer(batch)
                elif (sent := writer.write_nowait(reply)) < len(reply):
                    await writer.finish((reply,), sent)

    async def _from_task(self, batches: trio.MemoryReceiveChannel[list[Frame]]) -> list[Frame]:
        with suppress(trio.WouldBlock):
            return batches.receive_nowait()
        self._reader.dispatcher_idle()
        return await batches.receive()

    def _reply_at_once(self, batch: list[Frame]) -> bytes | None:
        """The reply to a batch that is one quick request, as it is in a conversation; None for any other batch."""
        if len(batch) != 1:
            return None
        frame = batch[0]
        route = self._routes.get(frame.type)
        if route is None or (command := route.quick) is None:
            return None
        return self._answer_quick(command, route, frame)

    async def _answer(self, batch: list[Frame]) -> None:
        replies: list[bytes] = []
        for frame in batch:
            route = self._routes.get(frame.type)
            if route is not None and (command := route.quick) is not None:
                replies.append(self._answer_quick(command, route, frame))
                if len(replies) == _REPLIES_PER_WRITE:
                    await self._writer.write(*replies)
                    replies.clear()
                    await trio.lowlevel.checkpoint()
                continue
            if replies:
                await self._writer.write(*replies)
                replies.clear()
            self._activity.request = frame
            if route is None:
                await self._answer_unroutable(frame)
            else:
                await self._start(route, frame)
        if replies:
            await self._writer.write(*replies)

    def _answer_quick(self, command: type[QuickCommand[Any]], route: Route, frame: Frame) -> bytes:
        self._activity.request = frame
        started = perf_counter() if self._times_quick else None
        try:
            answer = _encode(route, frame, command(route.parse(frame.payload))(self._context))
        except Exception as error:  # noqa: BLE001  whatever a handler raises ends its request, not the connection
            return _error_frame(frame, error)
        if started is not None:
            _log_done(logging.DEBUG, started)
        return answer

    async def _start(self, route: Route, frame: Frame) -> None:
        if (stream := route.stream) is not None:
            await self._start_stream(stream, route, frame)
        elif (command := route.unary) is not None:
            if command.slow and self._may_be_overtaken(frame.trace_id):
                await self._start_beside(command, route, frame)
            else:
                await self._run(command, route, frame, self._reader.dispatcher_busy)

    def _may_be_overtaken(self, trace_id: str) -> bool:
        return trace_id != "" and trace_id not in self._overtakable and not self._streams.has(trace_id)

    async def _start_beside(self, command: type[UnaryCommand[Any]], route: Route, frame: Frame) -> None:
        try:
            self._beside.acquire_nowait()
        except trio.WouldBlock:
            self._reader.dispatcher_busy()
            await self._beside.acquire()
        self._overtakable.add(frame.trace_id)
        self._nursery.start_soon(self._run_beside, command, route, frame)

    async def _run_beside(self, command: type[UnaryCommand[Any]], route: Route, frame: Frame) -> None:
        current_activity.set(Activity(self._activity.peer, frame))
        try:
            await self._run(command, route, frame, _nothing)
        finally:
            self._overtakable.discard(frame.trace_id)
            self._beside.release()

    async def _run(
        self, command: type[UnaryCommand[Any]], route: Route, frame: Frame, waits: Callable[[], None]
    ) -> None:
        """Carry a request out; `waits` is called if its command has to wait for something."""
        started = perf_counter()
        try:
            reply = await with_first_wait(command(route.parse(frame.payload))(self._context), waits)
            message = reply.message if isinstance(reply, Acknowledgement) else reply
            answer = message if isinstance(message, FileReply) else _encode(route, frame, message)
        except Exception as error:  # noqa: BLE001  as in `_answer_quick`
            await self._writer.write(_error_frame(frame, error))
            return
        if isinstance(answer, FileReply):
            try:
                await self._writer.write_file(route.reply_type, frame.trace_id, answer)
            finally:
                answer.file.close()
            _log_done(logging.DEBUG, started)  # one of many, as quick ones are
        else:
            await self._writer.write(answer)
            _log_done(logging.INFO, started)
        if isinstance(reply, Acknowledgement):
            reply.then()

    async def _start_stream(self, command: type[StreamCommand[Any]], route: Route, frame: Frame) -> None:
        try:
            request = route.parse(frame.payload)
            stream = self._streams.open(route.reply_type, frame.trace_id, command.accepts)
        except (RemoteProtocolError, CommandError) as error:
            await self._writer.write(_error_frame(frame, error))
        else:
            begun = trio.Event()
            self._nursery.start_soon(self._run_stream, command(request), frame, stream, begun.set)
            # What comes after it in the connection is handled after it has begun: who asks for events, and then for a
            # sandbox, gets all the events of that.
            await begun.wait()

    async def _run_stream(
        self, command: StreamCommand[Any], frame: Frame, stream: OpenStream, begun: Callable[[], None]
    ) -> None:
        current_activity.set(Activity(self._activity.peer, frame))
        started = perf_counter()
        try:
            await with_first_wait(command(self._context, stream), begun)
        except Exception as error:
            if self._writer.broken and error_reply(error) is None:
                raise  # it says perhaps only that the peer is gone: nothing is wrong, and nobody is there to be told
            await self._writer.write(_error_frame(frame, error))
        else:
            _log_done(logging.INFO, started)
        finally:
            begun()
            self._streams.close(stream)

    async def _answer_unroutable(self, frame: Frame) -> None:
        """Give input to its stream; anything else that has no route is an error."""
        exchange = EXCHANGES.get(frame.type)
        if exchange is None or exchange.reply is not None:
            await self._writer.write(_error_frame(frame, self._registry.why_unroutable(frame.type)))
            return
        stream = self._streams.recipient(frame)
        if stream is None:
            self._note_dropped(frame)
            return
        try:
            stream.inbox.send_nowait(frame)
        except trio.WouldBlock:
            self._reader.dispatcher_busy()
            with suppress(trio.BrokenResourceError):  # the stream ended: nobody wants its input any more
                await stream.inbox.send(frame)

    def _note_dropped(self, frame: Frame) -> None:
        """Log it, once for each stream: whoever feeds one that has ended may have much more for it."""
        if frame.trace_id != self._dropped_for and not self._writer.broken:
            self._dropped_for = frame.trace_id
            log.warning("input dropped: it is for no stream that runs on this connection")


def _nothing() -> None:
    pass


def _encode(route: Route, frame: Frame, message: Message | None) -> bytes:
    payload = message.SerializeToString() if message is not None else b""
    return encode_frame(route.reply_type, frame.trace_id, payload)


def _error_frame(frame: Frame, error: Exception) -> bytes:
    """The Error that answers a request, and its line in the log: the whole story only there."""
    reply = error_reply(error)
    if reply is None:
        log.error("request failed", exc_info=error)
        message = f"internal error: {type(error).__name__}; the agent's log has more"
        reply = ErrorReply(ErrorCode.INTERNAL, message)
    else:
        log.info("request refused", extra={"code": reply.code, "reason": reply.message})
    return encode_frame(MessageType.Error, frame.trace_id, reply.encode())


def _log_done(level: int, started: float) -> None:
    if not log.isEnabledFor(level):
        return
    log.log(level, "request answered", extra={"duration_ms": round((perf_counter() - started) * 1e3, 3)})
