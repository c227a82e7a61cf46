"""The reading half of a connection: bytes off the transport, batches of whole frames into the channel.

A peer in a conversation writes again as soon as it has its reply. So once a batch is with the dispatcher, the reader's
task rests, and the dispatcher, done with the batch, calls `FrameReader.poll`: most often the next batch is there,
without a trip through the scheduler and the kernel's poll. Whenever the dispatcher waits for anything, the task
watches the transport, so that a peer that goes away is noticed.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from protocol import ErrorReply
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from agent.transport import Transport
    from protocol import Frame, FrameDecoder

log = logging.getLogger(__name__)

_FAITH: Final = 3.0
"""Polls in a row that may find nothing before the reader rests no more: with many connections that is the rule."""

_FAITH_REGAINED: Final = 1 / 32
"""Of a poll, per batch without a rest."""


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

    _in_channel: int = field(init=False, default=0)
    """Batches that the dispatcher is not done with: the one that it has, and those in the channel."""

    _dispatcher_idle: bool = field(init=False, default=False)
    _resting: trio.lowlevel.Task | None = field(init=False, default=None)
    _faith: float = field(init=False, default=_FAITH)
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _timer_runs: bool = field(init=False, default=False)
    _stopped: bool = field(init=False, default=False)

    def poll(self) -> bool:
        """The dispatcher is done with a batch: says whether the next one is in the channel, and looks for one."""
        self._in_channel -= 1
        if self._in_channel:
            return True
        if self._resting is None or self._decoder.fault is not None:
            return False
        try:
            data = self._transport.receive_nowait()
        except trio.BrokenResourceError:  # which the task meets again when it looks for itself
            return False
        frames = self._decode(data) if data else None
        if not frames:
            self._faith -= 1
            return False
        self._faith = _FAITH
        self._in_channel = 1
        self._batches.send_nowait(frames)
        return True

    def dispatcher_idle(self) -> None:
        """The dispatcher waits for the next batch, which is not in the channel yet."""
        self._dispatcher_idle = True
        self._end_rest()

    def dispatcher_busy(self) -> None:
        """The dispatcher waits for something else."""
        self._dispatcher_idle = False
        self._end_rest()

    def stop(self) -> None:
        """Read no more; what was handed over already is still answered."""
        self._stopped = True
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
        while (data := transport.receive_nowait()) != b"":
            frames = self._decode(data) if data else None
            if frames:
                rest_pays = self._dispatcher_idle and self._faith > 0
                self._dispatcher_idle = False
                self._in_channel += 1
                try:
                    self._batches.send_nowait(frames)
                except trio.WouldBlock:
                    await self._hand_over_patiently(frames)
                if rest_pays:
                    await self._rest()
                elif self._faith < _FAITH:
                    self._faith += _FAITH_REGAINED
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
        self._resting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_rest)

    def _end_rest(self) -> None:
        task, self._resting = self._resting, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _abort_rest(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._resting = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _peer_gone(self) -> None:
        await self._transport.hang_up()
        where = "in the middle of a frame" if self._decoder.has_partial else "between frames"
        raise trio.BrokenResourceError(f"the peer closed the connection {where}")
