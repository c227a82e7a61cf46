"""Executions over connections that break: nothing is lost, nothing comes twice, nothing is written twice."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field

from arcbox_client import ConnectionLostError, Exited, NotFoundError, SandboxHandle, connect
from arcbox_client.testing import FakeAgent, memory_pair
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType
from arcbox_protocol import arcbox_sandbox_v1 as wire

if TYPE_CHECKING:
    from arcbox_client.testing import Request
    from tests.client.conftest import Listener

T = MessageType
OUTPUT = bytes(range(256)) * 256


@define(eq=False)
class Program:
    """An agent with one execution that has written `output` and reads stdin; it hangs up now and then."""

    cuts: int
    """How often it still hangs up."""

    output: bytes = OUTPUT
    kept_from: int = 0
    stdin: bytearray = field(init=False, factory=bytearray)
    closed: bool = field(init=False, default=False)
    started: list[str] = field(init=False, factory=list)
    attachments: int = field(init=False, default=0)
    _random: random.Random = field(init=False, factory=lambda: random.Random(7))  # noqa: S311  the same each time

    async def serve(self, agent: FakeAgent) -> None:
        try:
            while True:
                await self._answer(agent, await agent.receive())
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _hangs_up(self) -> bool:
        self.cuts -= 1
        return self.cuts >= 0

    async def _answer(self, agent: FakeAgent, request: Request) -> None:
        message = request.message
        if isinstance(message, wire.AttachExecutionRequest):
            await self._attach(agent, request, message)
        elif isinstance(message, wire.WriteStdinRequest):
            assert message.offset <= len(self.stdin)
            self.stdin[message.offset :] = message.data[: max(1, len(message.data) // 2)]
            self.closed = self.closed or message.eof
            if self._hangs_up():
                await agent.close()  # after it was carried out
            else:
                await agent.reply(request, self._stdin_status())
        elif isinstance(message, wire.GetStdinStatusRequest):
            await agent.reply(request, self._stdin_status())
        elif isinstance(message, wire.StartExecutionRequest):
            self.started.append(message.execution_id)
            if len(self.started) == 1 and self._hangs_up():
                await agent.close()  # after it was carried out
            else:
                await agent.reply(request, self._execution())
        else:
            assert EXCHANGES[request.type].reply_message is wire.Execution
            await agent.reply(request, self._execution())

    async def _attach(self, agent: FakeAgent, request: Request, message: wire.AttachExecutionRequest) -> None:
        self.attachments += 1
        offset = max(message.stdout_offset, self.kept_from)
        stop = offset + self._random.randrange(1, 4000) if self._hangs_up() else len(self.output)
        while offset < min(stop, len(self.output)):
            piece = self.output[offset : offset + self._random.randrange(1, 5000)]
            output = wire.ExecutionOutput(channel=wire.STDIO_CHANNEL_STDOUT, offset=offset, data=piece)
            await agent.reply(request, wire.ExecutionEvent(output=output))
            offset += len(piece)
        if stop < len(self.output):
            await agent.close()
        else:
            exited = wire.ExecutionExited(execution=self._execution())
            await agent.reply(request, wire.ExecutionEvent(exited=exited))

    def _execution(self) -> wire.Execution:
        status = wire.ExitStatus(signal=15)
        return wire.Execution(id="e", state=wire.EXECUTION_STATE_EXITED, exit_status=status)

    def _stdin_status(self) -> wire.StdinStatus:
        return wire.StdinStatus(bytes_written=len(self.stdin), closed=self.closed)


async def test_output_is_put_together_over_connections_that_break(listener: Listener, autojump_clock: object) -> None:
    program = Program(cuts=12)
    listener.serve_agent(program.serve)
    async with connect(listener.address) as client:
        done = await SandboxHandle(client, "box").execution("e").collect()
    assert (done.exit_code, done.stdout) == (143, OUTPUT)
    assert program.attachments == 13


async def test_what_was_not_kept_is_seen_by_its_offset(listener: Listener) -> None:
    program = Program(cuts=0, kept_from=1000)
    listener.serve_agent(program.serve)
    async with connect(listener.address) as client, SandboxHandle(client, "box").execution("e").attach() as output:
        pieces = [piece async for piece in output]
    assert pieces[0].offset == 1000
    assert b"".join(piece.data for piece in pieces) == OUTPUT[1000:]
    assert output.exited == Exited(143, 15, "")


async def test_it_is_started_once_and_its_stdin_written_once_over_connections_that_break(
    listener: Listener, autojump_clock: object
) -> None:
    program = Program(cuts=6)
    listener.serve_agent(program.serve)
    async with connect(listener.address) as client:
        execution = await SandboxHandle(client, "box").start(["cat"], stdin=True)
        await execution.write_stdin(OUTPUT)
        await execution.close_stdin()
        assert await execution.wait() == Exited(143, 15, "")
    assert bytes(program.stdin) == OUTPUT
    assert len(program.started) == 2
    assert len(set(program.started)) == 1
    assert program.closed


async def test_who_can_not_connect_again_is_told_at_once() -> None:
    async with memory_pair() as (client, agent):
        await agent.close()
        execution = SandboxHandle(client, "box").execution("e")
        with pytest.raises(ConnectionLostError):
            await execution.wait()
        with pytest.raises(ConnectionLostError):
            await execution.collect()


async def test_who_finds_nobody_for_too_long_is_told_so(listener: Listener, autojump_clock: object) -> None:
    async def hang_up(agent: FakeAgent) -> None:
        await agent.close()

    listener.serve_agent(hang_up)
    async with connect(listener.address) as client:
        start = trio.current_time()
        with pytest.raises(ConnectionLostError):
            await SandboxHandle(client, "box").execution("e").collect()
        assert 50 < trio.current_time() - start <= 60


async def test_an_execution_that_does_not_exist_is_an_error() -> None:
    async with memory_pair({T.AttachExecutionRequest: lambda _: ErrorReply(404, "no such execution")}) as (client, _):
        with pytest.raises(NotFoundError, match="no such execution"):
            await SandboxHandle(client, "box").execution("e").collect()


async def test_a_sandbox_lasts_as_long_as_its_context_whatever_ends_that() -> None:
    removed: list[Request] = []

    async with memory_pair() as (client, agent), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            await agent.serve(
                {
                    T.PingRequest: lambda _: b"",
                    T.SandboxEventsRequest: lambda _: [],
                    T.SandboxCreateRequest: lambda _: b"\x0a\x03box",
                    T.SandboxInspectRequest: lambda _: b"\x0a\x03box\x12\x05ready",
                    T.SandboxRemoveRequest: removed.append,
                }
            )

        with trio.CancelScope() as scope:
            async with client.sandbox(image="alpine") as box:
                assert box.id == "box"
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert len(removed) == 1
        async with client.sandbox(keep=True):
            pass
        assert len(removed) == 1
        nursery.cancel_scope.cancel()
