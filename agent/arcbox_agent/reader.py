"""The reading half of a connection: bytes off the transport, batches of whole frames into the channel.

One at a time looks for more. In a conversation that is the dispatcher, by `FrameReader.look`: while it waits for the
next batch anyway, a hop from task to task would cost as much as all the rest. Whenever it waits for something else, or
a frame is only half there, it is the reader's own task, so that a peer that goes away or dawdles is always noticed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_protocol import ErrorReply
from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.transport import Transport
    from arcbox_protocol import Frame, FrameDecoder

_FAITH: Final = 3.0
"""Looks that may find nothing, after which none is taken without waiting: with many connections that is the rule."""

_FAITH_REGAINED: Final = 1 / 32
"""Of a look, per batch that was waited for."""


@define(eq=False)
class FrameReader:
    """The only one who reads from its transport."""

    _transport: Transport
    _decoder: FrameDecoder
    _frame_timeout: float
    """Seconds in which a frame that was begun must be whole."""

    _batches: trio.MemorySendChannel[list[Frame]]
    complaint: ErrorReply | None = field(init=False, default=None)
    """After `run`: what the peer did that ends the connection, in words for the peer."""

    lent: bool = field(init=False, default=False)
    """Whether it is the dispatcher's to look for more, as soon as it has nothing else to do. The channel is empty."""

    readable: Callable[[], Awaitable[None]] = field(init=False)
    """For the dispatcher: waits until it pays to `look`. Raises trio.ClosedResourceError when that never will."""

    _resting: trio.lowlevel.Task | None = field(init=False, default=None)
    """The task, while it leaves that to the dispatcher."""

    _dispatcher_idle: bool = field(init=False, default=False)
    """Whether the dispatcher waits for the task to bring something."""

    _faith: float = field(init=False, default=_FAITH)
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _timer_runs: bool = field(init=False, default=False)
    _stopped: bool = field(init=False, default=False)

    @readable.default
    def _readable(self) -> Callable[[], Awaitable[None]]:
        return self._transport.readable

    def glance(self) -> bool:
        """`look`, if there is hope: a peer in a conversation writes again as soon as it has its reply."""
        if self._faith <= 0:
            return False
        if self.look():
            self._faith = _FAITH
            return True
        self._faith -= 1
        return False

    def look(self) -> bool:
        """For the dispatcher: whether there was a batch, which is in the channel now. Not if `lent` is false, then."""
        try:
            data = self._transport.receive_nowait()
        except trio.BrokenResourceError:  # which the task meets again when it looks for itself
            self.lent = False
            return False
        if data is None:
            return False
        frames = self._decoder.feed(data)
        if not frames:  # no more will come, or a frame is only half there
            self.lent = False
            return False
        self.lent = self._decoder.is_between_frames
        if self._faith < _FAITH:
            self._faith += _FAITH_REGAINED
        self._batches.send_nowait(frames)
        return True

    def dispatcher_idle(self) -> None:
        """The dispatcher waits for the next batch, which is not in the channel yet: the task has to bring it."""
        self._dispatcher_idle = True
        self._end_rest()

    def dispatcher_busy(self) -> None:
        """The dispatcher waits for something else."""
        self._end_rest()

    def stop(self) -> None:
        """Read no more; what was handed over already is still answered."""
        self._stopped = True
        if self._resting is not None:
            self._transport.interrupt()
        self._scope.cancel()

    async def run(self) -> None:
        """Read until the peer sends no more, can't be understood, or `stop`; close the channel then.

        A peer that stopped sending may still wait for replies, so this goes on until it is gone altogether.

        Raises:
            trio.BrokenResourceError: the peer is gone.
        """
        with self._batches:
            with self._scope:
                await self._read()
            if self._scope.cancelled_caught and not self._stopped:
                text = f"a frame was begun and not finished within {self._frame_timeout:g} s"
                self.complaint = ErrorReply(ErrorCode.TIMED_OUT, text)
            elif self._decoder.fault is not None:
                self.complaint = ErrorReply(self._decoder.fault.code, str(self._decoder.fault))
        if self.complaint is None:
            await self._peer_gone()

    async def _read(self) -> None:
        transport, decoder = self._transport, self._decoder
        while decoder.fault is None and (data := transport.receive_nowait()) != b"":
            if data and (frames := self._decode(data)) and await self._hand_over(frames):
                await self._rest()
                continue
            if decoder.fault is not None:
                return
            if decoder.has_partial:
                self._start_timer()
            await transport.readable()

    def _decode(self, data: bytes) -> list[Frame]:
        frames = self._decoder.feed(data)
        if frames and self._timer_runs:  # moving a deadline, even to where it is, costs as much as to answer a ping
            self._scope.deadline, self._timer_runs = math.inf, False
        return frames

    async def _hand_over(self, frames: list[Frame]) -> bool:
        """Give the dispatcher a batch; whether it waited for it, and so can look for the next one itself."""
        was_idle, self._dispatcher_idle = self._dispatcher_idle, False
        try:
            self._batches.send_nowait(frames)
        except trio.WouldBlock:
            await self._hand_over_patiently(frames)
        return was_idle

    def _start_timer(self) -> None:
        """Give a frame its time. It only runs while we wait for more: what the agent does is not the peer's fault."""
        if not self._timer_runs:
            self._scope.deadline, self._timer_runs = trio.current_time() + self._frame_timeout, True

    async def _hand_over_patiently(self, frames: list[Frame]) -> None:
        with trio.CancelScope(shield=True):  # from `stop` only: these frames were read, so they get answered
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._peer_gone)
                await self._batches.send(frames)
                nursery.cancel_scope.cancel()

    async def _rest(self) -> None:
        """Wait until the dispatcher waits."""
        self.lent = self._decoder.is_between_frames
        self._resting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_rest)

    def _end_rest(self) -> None:
        self.lent = False
        task, self._resting = self._resting, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _abort_rest(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self.lent, self._resting = False, None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _peer_gone(self) -> None:
        await self._transport.hang_up()
        where = "in the middle of a frame" if self._decoder.has_partial else "between frames"
        raise trio.BrokenResourceError(f"the peer closed the connection {where}")
