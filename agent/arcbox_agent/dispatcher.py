"""The answering half of a connection: batches of frames in, commands carried out, replies to the writer."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from arcbox_agent.request_context import working_on
from arcbox_agent.streams import Streams
from arcbox_handlers import Acknowledgement, CommandError, FileReply, Reply, error_reply
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType, encode_frame
from arcbox_protocol.errors import ErrorCode, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

    from arcbox_agent.reader import FrameReader
    from arcbox_agent.settings import Limits
    from arcbox_agent.streams import OpenStream
    from arcbox_agent.writer import FrameWriter
    from arcbox_handlers import Context, QuickCommand, Registry, Reply, Route, StreamCommand, UnaryCommand
    from arcbox_protocol import Frame

log = logging.getLogger(__name__)

_REPLIES_PER_WRITE = 64
"""Quick requests of one batch that are answered in a row before the other connections get their turn."""


@define(eq=False)
class Dispatcher:
    """Answers the requests of one connection: in the order they came, but for slow commands and streams."""

    _registry: Registry
    _context: Context
    _limits: Limits
    _reader: FrameReader
    _writer: FrameWriter
    _nursery: trio.Nursery
    """Where streams and slow commands run."""

    _streams: Streams = field(init=False)
    _slow: trio.Semaphore = field(init=False)
    """How many slow commands may still run beside the others."""

    _routes: Mapping[int, Route] = field(init=False)
    _times_quick: bool = field(init=False, factory=partial(log.isEnabledFor, logging.DEBUG))
    """Whether the log wants to know of quick requests: asked once, since there are so many."""

    _overtakable: set[str] = field(init=False, factory=set)
    """The trace ids of the slow commands that run beside the others."""

    _running: int = field(init=False, default=0)
    """Tasks in the nursery."""

    _idle: trio.Event | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._streams = Streams(self._writer, self._limits.max_streams)
        self._slow = trio.Semaphore(self._limits.max_concurrent_requests)
        self._routes = self._registry.routes

    async def run(self) -> None:
        """Answer all that the reader brings, until there is no more.

        Raises:
            trio.BrokenResourceError: the peer is gone.
        """
        with suppress(trio.EndOfChannel):
            while True:
                await self._answer(await self._reader.next_batch())

    async def wait_idle(self) -> None:
        """Wait for the streams and slow commands that run, after `run`: the peer may still want their replies.

        Raises:
            trio.BrokenResourceError: in a group: the peer is gone.
        """
        if self._running:
            self._idle = trio.Event()
            async with self._reader.reading_ahead():
                await self._idle.wait()

    def _one_ended(self) -> None:
        self._running -= 1
        if self._idle is not None and not self._running:
            self._idle.set()

    async def _answer(self, batch: list[Frame]) -> None:
        """Answer frames in order; the replies to quick requests are joined into one write."""
        replies: list[bytes] = []
        for frame in batch:
            route = self._routes.get(frame.type)
            if route is not None and route.quick is not None:
                replies.append(self._answer_quick(route.quick, route, frame))
                if len(replies) < _REPLIES_PER_WRITE:
                    continue
                await trio.lowlevel.checkpoint()
            if replies:
                await self._writer.write(*replies)
                replies.clear()
            if route is None or route.quick is None:
                with working_on(frame):
                    await self._begin(route, frame)
        if replies:
            await self._writer.write(*replies)

    def _answer_quick(self, command: type[QuickCommand[Any]], route: Route, frame: Frame) -> bytes:
        started = perf_counter() if self._times_quick else None
        try:
            answer = _encode(route, frame, command(route.parse(frame.payload))(self._context))
        except Exception as error:  # noqa: BLE001  whatever a handler raises ends its request, not the connection
            with working_on(frame):
                return _error_frame(frame, error)
        if started is not None:
            with working_on(frame):
                _log_done(logging.DEBUG, started)
        return answer

    async def _begin(self, route: Route | None, frame: Frame) -> None:
        """Do what a frame asks for that is no quick request, or start it."""
        if route is None:
            await self._answer_unroutable(frame)
        elif route.stream is not None:
            await self._start_stream(route.stream, route, frame)
        elif route.unary is not None:
            await self._start(route.unary, route, frame)

    async def _start(self, kind: type[UnaryCommand[Any]], route: Route, frame: Frame) -> None:
        """Carry a request out in turn; or beside the others, if it is slow and they may overtake it."""
        started = perf_counter()
        try:
            command = kind(route.parse(frame.payload))
            reply = command.at_once(self._context)
        except Exception as error:  # noqa: BLE001  as in `_answer_quick`
            await self._writer.write(_error_frame(frame, error))
            return
        if reply is not None:
            await self._send(reply, route, frame, started)
        elif command.slow and self._may_be_overtaken(frame.trace_id):
            await self._start_beside(command, route, frame, started)
        else:
            async with self._reader.reading_ahead():
                outcome = await self._carry_out(command)
            await self._send(outcome, route, frame, started)

    def _may_be_overtaken(self, trace_id: str) -> bool:
        return trace_id != "" and trace_id not in self._overtakable and not self._streams.has(trace_id)

    async def _start_beside(self, command: UnaryCommand[Any], route: Route, frame: Frame, started: float) -> None:
        try:
            self._slow.acquire_nowait()
        except trio.WouldBlock:
            async with self._reader.reading_ahead():
                await self._slow.acquire()
        self._overtakable.add(frame.trace_id)
        self._running += 1
        self._nursery.start_soon(self._run_beside, command, route, frame, started)

    async def _run_beside(self, command: UnaryCommand[Any], route: Route, frame: Frame, started: float) -> None:
        try:
            await self._send(await self._carry_out(command), route, frame, started)
        finally:
            self._overtakable.discard(frame.trace_id)
            self._slow.release()
            self._one_ended()

    async def _carry_out(self, command: UnaryCommand[Any]) -> Reply | Exception | None:
        try:
            return await command(self._context)
        except Exception as error:  # noqa: BLE001  as in `_answer_quick`
            return error

    async def _send(self, outcome: Reply | Exception | None, route: Route, frame: Frame, started: float) -> None:
        """Send what became of a request that may have waited."""
        message = outcome.message if isinstance(outcome, Acknowledgement) else outcome
        if isinstance(message, FileReply):
            try:
                await self._writer.write_file(route.reply_type, frame.trace_id, message)
            finally:
                message.file.close()
            _log_done(logging.DEBUG, started)  # one of many, as quick ones are
            return
        if isinstance(message, Exception):
            await self._writer.write(_error_frame(frame, message))
            return
        await self._writer.write(_encode(route, frame, message))
        _log_done(logging.INFO, started)
        if isinstance(outcome, Acknowledgement):
            outcome.then()

    async def _start_stream(self, command: type[StreamCommand[Any]], route: Route, frame: Frame) -> None:
        try:
            request = route.parse(frame.payload)
            stream = self._streams.open(route.reply_type, frame.trace_id, command.accepts, route.exchange.end)
        except (RemoteProtocolError, CommandError) as error:
            self._streams.note_refused(frame.trace_id)
            await self._writer.write(_error_frame(frame, error))
            return
        self._running += 1
        self._nursery.start_soon(self._run_stream, command(request), frame, stream)
        if command.observes:
            async with self._reader.reading_ahead():
                await stream.ready.wait()

    async def _run_stream(self, command: StreamCommand[Any], frame: Frame, stream: OpenStream) -> None:
        started = perf_counter()
        try:
            await command(self._context, stream)
        except Exception as error:
            if self._writer.broken and error_reply(error) is None:
                raise  # most likely it was caused by the lost connection, and nobody is left to be told
            self._streams.note_refused(frame.trace_id)
            await self._writer.write(_error_frame(frame, error))
        else:
            _log_done(logging.INFO, started)
        finally:
            stream.started()  # the dispatcher may still wait for that
            self._streams.close(stream)
            self._one_ended()

    async def _answer_unroutable(self, frame: Frame) -> None:
        """Give input to its stream; anything else that has no route is an error."""
        exchange = EXCHANGES.get(frame.type)
        if exchange is None or exchange.reply is not None:
            await self._writer.write(_error_frame(frame, self._registry.why_unroutable(frame.type)))
            return
        stream = self._streams.recipient(frame)
        if stream is None:
            if self._streams.is_drop_notable(frame) and not self._writer.broken:
                log.warning("input dropped: it is for no stream that runs on this connection")
            return
        if not stream.inputs.put_nowait(frame):
            async with self._reader.reading_ahead():
                await stream.inputs.put(frame)


def _encode(route: Route, frame: Frame, message: Message | None) -> bytes:
    payload = message.SerializeToString() if message is not None else b""
    return encode_frame(route.reply_type, frame.trace_id, payload)


def _error_frame(frame: Frame, error: Exception) -> bytes:
    """The Error frame that answers a request; a traceback goes to the log only."""
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
