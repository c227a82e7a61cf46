"""Executions over the wire: started once, attached to by offset, fed, signalled, waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from arcbox_agent.testing import memory_connection
from arcbox_protocol import ErrorReply, MessageType
from arcbox_protocol import arcbox_sandbox_v1 as v1

if TYPE_CHECKING:
    import trio

    from arcbox_agent.testing import MemoryPeer
    from tests.handlers.sandboxes.conftest import Rig

T = MessageType
IDS: dict[str, Any] = {"sandbox_id": "box", "execution_id": "job"}


async def start(rig: Rig, *cmd: str, **fields: Any) -> v1.Execution:  # noqa: ANN401  of the request
    frame = await rig.ask(T.StartExecutionRequest, v1.StartExecutionRequest(**{**IDS, **fields}, cmd=cmd))
    assert frame.type == T.StartExecutionResponse, ErrorReply.decode(frame.payload)
    return v1.Execution.FromString(frame.payload)


async def wait(rig: Rig, seconds: int = 60) -> v1.Execution:
    frame = await rig.ask(T.WaitExecutionRequest, v1.WaitExecutionRequest(**IDS, timeout_seconds=seconds))
    return v1.Execution.FromString(frame.payload)


async def event(peer: MemoryPeer) -> v1.ExecutionEvent:
    frame = await peer.receive()
    assert frame.type == T.ExecutionEvent, ErrorReply.decode(frame.payload)
    return v1.ExecutionEvent.FromString(frame.payload)


async def test_an_execution_runs_and_is_known_by_its_id(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    started = await start(rig, "sh", "-c", "exit 7")
    assert (started.id, started.sandbox_id, started.tty) == ("job", "box", False)
    assert started.started_at.seconds > 0
    ended = await wait(rig)
    assert (ended.state, ended.exit_status.code, ended.exit_status.WhichOneof("status")) == (2, 7, "code")
    assert ended.exited_at.ByteSize()
    frame = await rig.ask(T.ListExecutionsRequest, v1.ListExecutionsRequest(sandbox_id="box"))
    assert list(v1.ListExecutionsResponse.FromString(frame.payload).executions) == [ended]


async def test_a_retry_returns_the_one_that_exists(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    first = await start(rig, "sleep", "1000")
    assert await start(rig, "sleep", "1000") == first
    assert len(rig.sandboxes.driver.sandboxes["box"].processes) == 1


async def test_an_id_is_made_where_none_is_given(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    assert len((await start(rig, "true", execution_id="")).id) == 36


async def test_any_number_attach_each_from_an_offset_of_its_own(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "sh", "-c", "echo out; echo err >&2")
    await wait(rig)
    for offset in (0, 2):
        async with memory_connection(guest=rig.sandboxes.guest) as peer:
            await peer.send(T.AttachExecutionRequest, v1.AttachExecutionRequest(**IDS, stdout_offset=offset))
            assert (await event(peer)).started.execution.id == "job"
            outputs = [(await event(peer)).output for _ in range(2)]
            assert sorted((output.channel, output.offset, output.data) for output in outputs) == [
                (v1.STDIO_CHANNEL_STDOUT, offset, b"out\n"[offset:]),
                (v1.STDIO_CHANNEL_STDERR, 0, b"err\n"),
            ]
            assert (await event(peer)).exited.execution.exit_status.code == 0
    refusal = await rig.refusal(T.AttachExecutionRequest, v1.AttachExecutionRequest(**IDS, stdout_offset=5))
    assert refusal.code == 416


async def test_a_stream_that_has_nothing_to_say_says_that_it_is_alive(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "sleep", "1000")
    await rig.ask(T.AttachExecutionRequest, v1.AttachExecutionRequest(**IDS))
    assert (await rig.next(v1.ExecutionEvent)).WhichOneof("event") == "keep_alive"


async def test_input_is_taken_once_and_out_of_range_is_refused(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "cat", stdin=True)

    async def write(offset: int, data: bytes, *, eof: bool = False) -> v1.StdinStatus:
        request = v1.WriteStdinRequest(**IDS, offset=offset, data=data, eof=eof)
        return v1.StdinStatus.FromString((await rig.ask(T.WriteStdinRequest, request)).payload)

    assert (await write(0, b"one ")).bytes_written == 4
    assert (await write(0, b"one two")).bytes_written == 7
    assert (await rig.refusal(T.WriteStdinRequest, v1.WriteStdinRequest(**IDS, offset=9, data=b"x"))).code == 416
    assert await write(7, b"", eof=True) == v1.StdinStatus(bytes_written=7, closed=True)
    frame = await rig.ask(T.GetStdinStatusRequest, v1.GetStdinStatusRequest(**IDS))
    assert v1.StdinStatus.FromString(frame.payload) == v1.StdinStatus(bytes_written=7, closed=True)
    assert (await wait(rig)).stdout_len == 7


async def test_input_that_is_sent_without_waiting_for_answers_is_taken_in_order(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "cat", stdin=True)
    pieces = [b"%d " % number for number in range(30)]
    offset = 0
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        request = v1.WriteStdinRequest(**IDS, offset=offset, data=piece, eof=last)
        await rig.peer.send(T.WriteStdinRequest, request, trace_id=f"write-{number}")
        offset += len(piece)
    frames = [await rig.peer.receive() for _ in pieces]
    assert {frame.type for frame in frames} == {T.StdinStatus}
    assert (await wait(rig)).stdout_len == offset
    await rig.ask(T.AttachExecutionRequest, v1.AttachExecutionRequest(**IDS))
    assert (await rig.next(v1.ExecutionEvent)).output.data == b"".join(pieces)


async def test_a_terminal_is_resized_and_has_no_end_of_input(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    size = v1.TerminalSize(width=90, height=30)
    await start(rig, "sh", "-c", "stty size; read line; stty size", tty=True, tty_size=size)
    size = v1.TerminalSize(width=50, height=20)
    assert (await rig.ask(T.ResizeExecutionTtyRequest, v1.ResizeExecutionTtyRequest(**IDS, size=size))).payload == b""
    assert (await rig.refusal(T.WriteStdinRequest, v1.WriteStdinRequest(**IDS, eof=True))).code == 400
    await rig.ask(T.WriteStdinRequest, v1.WriteStdinRequest(**IDS, data=b"\n"))
    await wait(rig)
    await rig.ask(T.AttachExecutionRequest, v1.AttachExecutionRequest(**IDS))
    output = (await rig.next(v1.ExecutionEvent)).output
    assert (output.channel, output.data) == (v1.STDIO_CHANNEL_PTY, b"30 90\r\n20 50\r\n")


async def test_a_signal_ends_it_and_is_told_as_one(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "sleep", "1000")
    assert (await wait(rig, 0)).state == v1.EXECUTION_STATE_RUNNING
    await rig.ask(T.SignalExecutionRequest, v1.SignalExecutionRequest(**IDS, signal=v1.SIGNAL_SIGTERM))
    ended = await wait(rig)
    assert (ended.exit_status.signal, ended.exit_status.WhichOneof("status")) == (15, "signal")
    assert (await rig.refusal(T.SignalExecutionRequest, v1.SignalExecutionRequest(**IDS))).code == 400


async def test_its_time_limit_kills_it(rig: Rig, autojump_clock: trio.testing.MockClock) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "sleep", "1000", timeout_seconds=5)
    assert (await wait(rig)).exit_status.signal == 9


async def test_it_ends_with_its_sandbox_and_is_known_until_that_is_removed(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    await start(rig, "sleep", "1000")
    await rig.sandboxes.manager.stop("box", 0)
    assert (await wait(rig)).exit_status.signal == 9
    refusal = await rig.refusal(T.StartExecutionRequest, v1.StartExecutionRequest(sandbox_id="box", cmd=["true"]))
    assert refusal.code == 412
    await rig.sandboxes.manager.remove("box", force=False)
    assert (await rig.refusal(T.WaitExecutionRequest, v1.WaitExecutionRequest(**IDS))).code == 404


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"sandbox_id": "nowhere"}, 404),
        ({"execution_id": "../job"}, 400),
        ({"cmd": []}, 400),
        ({"user": "nemo"}, 400),
    ],
)
async def test_what_can_not_be_started_is_refused(rig: Rig, fields: dict[str, Any], code: int) -> None:
    await rig.sandboxes.create("box")
    request = v1.StartExecutionRequest(**{**IDS, "cmd": ["true"], **fields})
    assert (await rig.refusal(T.StartExecutionRequest, request)).code == code
    assert (await rig.refusal(T.GetStdinStatusRequest, v1.GetStdinStatusRequest(**IDS))).code == 404


async def test_a_port_is_waited_for(rig: Rig, autojump_clock: trio.testing.MockClock) -> None:
    await rig.sandboxes.create("box")
    request = v1.WaitForPortRequest(sandbox_id="box", port=8080, timeout_seconds=1)
    assert (await rig.refusal(T.WaitForPortRequest, request)).code == 504
    rig.sandboxes.driver.sandboxes["box"].ports.add(8080)
    assert (await rig.ask(T.WaitForPortRequest, request)).type == T.WaitForPortResponse
