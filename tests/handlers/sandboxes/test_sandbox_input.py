"""What the peer sends to an exec: stdin, its end, and the terminal's new size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio.testing import wait_all_tasks_blocked

from arcbox_guest.sandboxes.model import TerminalSize
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from tests.handlers.sandboxes.conftest import Rig, Scripted

EXEC = MessageType.SandboxExecRequest
INPUT, RESIZE = MessageType.SandboxExecInput, MessageType.SandboxExecResize


async def prepare(rig: Rig, name: str = "x", *, reads: bool = True) -> Scripted:
    if not rig.sandboxes.manager.list():
        await rig.sandboxes.create("box")
    program = rig.sandboxes.script(name)
    program.reads = reads
    return program


async def request(rig: Rig, name: str = "x", *, trace_id: str = "t", tty: bool = False) -> None:
    await rig.peer.send(EXEC, sandbox_v1.ExecRequest(id="box", cmd=[name], tty=tty), trace_id=trace_id)


async def send(rig: Rig, *pieces: bytes, trace_id: str = "t") -> None:
    for piece in pieces:
        await rig.peer.send(INPUT, piece, trace_id=trace_id)
    await wait_all_tasks_blocked()


async def test_stdin_reaches_the_process_byte_for_byte_and_an_empty_frame_is_its_end(rig: Rig) -> None:
    program = await prepare(rig)
    await request(rig)
    await send(rig, b"a\x00", b"\xff" * 100_000, b"")
    assert program.typed == [b"a\x00", b"\xff" * 100_000, b""]


async def test_stdin_stays_open_until_its_end_is_said(rig: Rig) -> None:
    program = await prepare(rig)
    await request(rig)
    await send(rig, b"a")
    assert program.typed == [b"a"]


async def test_input_that_comes_before_the_process_was_started_is_not_lost(rig: Rig) -> None:
    program = await prepare(rig)
    await request(rig)
    for number in range(10):
        await rig.peer.send(INPUT, b"%d" % number, trace_id="t")
    await program.process()
    await send(rig, b"")
    assert program.typed == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b""]


async def test_what_comes_after_the_end_of_stdin_is_dropped(rig: Rig) -> None:
    program = await prepare(rig)
    await request(rig)
    await send(rig, b"", b"late", b"")
    assert program.typed == [b""]


async def test_stdin_for_a_process_that_closed_it_is_dropped_and_the_rest_goes_on(rig: Rig) -> None:
    program = await prepare(rig)
    program.stdin_is_closed = True
    await request(rig, tty=True)
    process = await program.process()
    await send(rig, b"a", b"b")
    await rig.peer.send(RESIZE, sandbox_v1.TerminalSize(width=1, height=2), trace_id="t")
    process.write(b"done")
    assert (await rig.next(sandbox_v1.ExecOutput)).data == b"done"
    assert program.typed == []
    assert program.sizes == [TerminalSize(1, 2)]


async def test_a_process_may_end_while_it_does_not_read_its_stdin(rig: Rig) -> None:
    program = await prepare(rig, reads=False)
    await request(rig)
    process = await program.process()
    await send(rig, bytes(100_000), bytes(100_000))
    assert program.typed == []
    process.exit(4)
    assert await rig.next(sandbox_v1.ExecOutput) == sandbox_v1.ExecOutput(stream="exit", exit_code=4, done=True)
    assert (await rig.ask(MessageType.PingRequest)).type == MessageType.PingResponse


async def test_output_comes_while_stdin_is_not_read(rig: Rig) -> None:
    program = await prepare(rig, reads=False)
    await request(rig)
    process = await program.process()
    await send(rig, bytes(100_000), bytes(100_000))
    process.write(b"busy")
    assert (await rig.next(sandbox_v1.ExecOutput)).data == b"busy"


async def test_input_finds_its_process_by_trace_id(rig: Rig) -> None:
    first, second = await prepare(rig, "1"), await prepare(rig, "2")
    await request(rig, "1", trace_id="1")
    await request(rig, "2", trace_id="2")
    await send(rig, b"for 2", trace_id="2")
    await send(rig, b"for 1", trace_id="1")
    assert (first.typed, second.typed) == ([b"for 1"], [b"for 2"])


async def test_input_without_a_name_goes_to_the_only_exec_though_a_run_is_there(rig: Rig) -> None:
    run, only = await prepare(rig, "run"), await prepare(rig, "only")
    await rig.peer.send(MessageType.SandboxRunRequest, sandbox_v1.RunRequest(id="box", cmd=["run"]), trace_id="2")
    await run.process()
    await request(rig, "only", trace_id="1")
    await send(rig, b"x", trace_id="")
    await send(rig, b"y", trace_id="unknown")  # of one that has ended, perhaps
    assert only.typed == [b"x"]
    assert run.typed == [b""]


async def test_input_for_a_run_is_dropped(rig: Rig) -> None:
    program = await prepare(rig)
    await rig.peer.send(MessageType.SandboxRunRequest, sandbox_v1.RunRequest(id="box", cmd=["x"]), trace_id="t")
    await send(rig, b"x", b"")
    assert program.typed == [b""]
