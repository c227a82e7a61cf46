"""The relay between a process and its peer, by itself: what only happens when two things happen at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field

from arcbox_guest.errors import TimedOutError
from arcbox_handlers._process_relay import relay
from arcbox_protocol import Frame, MessageType, sandbox_v1

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from trio.testing import MockClock

    from arcbox_guest.sandboxes.model import TerminalSize
    from arcbox_protocol import Buffer


@define(eq=False)
class LateOutput:
    """Its one piece comes at a certain time, even to somebody who gives up waiting in just that moment."""

    at: float
    _data: bytes = b"late"

    async def receive(self) -> memoryview:
        if not self._data:
            await trio.sleep_forever()
        with trio.CancelScope(shield=True):
            await trio.sleep_until(self.at)
        data, self._data = self._data, b""
        return memoryview(data)

    def unread(self) -> int:
        return len(self._data)


@define(eq=False)
class EndedOutput:
    async def receive(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        return memoryview(b"")

    def unread(self) -> int:
        return 0


@define(eq=False)
class StubProcess:
    """A process that runs until `exits_at`."""

    stdout: LateOutput | EndedOutput = field(factory=EndedOutput)
    stderr: LateOutput | EndedOutput | None = None
    exits_at: float = 0.0
    typed: list[bytes] = field(factory=list)

    @property
    def failure(self) -> str:
        raise NotImplementedError

    async def send_stdin(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.typed.append(data)

    async def close_stdin(self) -> None:
        await self.send_stdin(b"")

    def resize(self, size: TerminalSize) -> None:
        raise NotImplementedError

    async def wait(self) -> int:
        await trio.sleep_until(self.exits_at)
        return 7

    async def kill(self) -> None:
        raise NotImplementedError


@define(eq=False)
class StubStream:
    """A stream whose sends take a while."""

    sent: list[bytes] = field(factory=list)
    begun: int = 0
    error: Exception | None = None
    inbox: trio.MemorySendChannel[Frame] = field(init=False)
    inputs: trio.MemoryReceiveChannel[Frame] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.inbox, self.inputs = trio.open_memory_channel[Frame](16)

    def started(self) -> None:
        raise NotImplementedError

    async def notify(self, message_type: MessageType, message: Message) -> None:
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def send_payload(self, *parts: Buffer) -> None:
        self.begun += 1
        await trio.sleep(5)
        if self.error is not None:
            raise self.error
        self.sent.append(sandbox_v1.ExecOutput.FromString(b"".join(parts)).data)

    async def end(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("at", [0.5, 1.0, 1.5])
async def test_a_piece_that_comes_when_the_wait_ends_is_not_lost(autojump_clock: MockClock, at: float) -> None:
    stream = StubStream()
    assert await relay(StubProcess(LateOutput(at)), stream) == 7
    assert (stream.sent, stream.begun) == ([b"late"], 1)  # a frame that is begun must be finished


async def test_the_exit_waits_for_both_streams_and_for_their_last_pieces(autojump_clock: MockClock) -> None:
    stream = StubStream()
    assert await relay(StubProcess(LateOutput(0.2), LateOutput(0.4)), stream) == 7
    assert stream.sent == [b"late", b"late"]


async def test_a_peer_that_is_gone_is_told_of_by_one_plain_error(autojump_clock: MockClock) -> None:
    gone = StubStream(error=trio.BrokenResourceError("no more"))
    process = StubProcess(LateOutput(0.0), LateOutput(0.0), exits_at=1e6)
    with pytest.raises(trio.BrokenResourceError):
        await relay(process, gone)
    assert trio.current_time() < 100


@define(eq=False)
class HangingProcess(StubProcess):
    """Its runtime hangs, as `Process.wait` says."""

    async def wait(self) -> int:
        await trio.sleep(1)
        raise TimedOutError("the OCI runtime did not start the process in time")


async def test_what_goes_wrong_is_told_in_its_own_words(autojump_clock: MockClock) -> None:
    with pytest.raises(TimedOutError, match="the OCI runtime did not start the process in time"):
        await relay(HangingProcess(LateOutput(5.0)), StubStream())


async def test_a_process_hears_nothing_after_the_end_of_its_stdin(autojump_clock: MockClock) -> None:
    stream, process = StubStream(), StubProcess(exits_at=1)
    for piece in (b"a", b"", b"b", b""):
        stream.inbox.send_nowait(Frame(MessageType.SandboxExecInput, "", piece))
    assert await relay(process, stream) == 7
    assert process.typed == [b"a", b""]
