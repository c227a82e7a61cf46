"""Run and Exec: what is started, what is refused, and what of the output arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_guest.errors import GuestError, InvalidArgumentError, UnavailableError
from arcbox_guest.sandboxes.model import Action, ExecSpec, State
from arcbox_protocol import ErrorReply, MessageType, sandbox_v1

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.testing import FakeProcess
    from tests.handlers.sandboxes.conftest import Rig

RUN, EXEC = MessageType.SandboxRunRequest, MessageType.SandboxExecRequest
OUTPUTS: dict[MessageType, type[sandbox_v1.RunOutput | sandbox_v1.ExecOutput]] = {
    RUN: sandbox_v1.RunOutput,
    EXEC: sandbox_v1.ExecOutput,
}
REPLIES = {RUN: MessageType.SandboxRunOutput, EXEC: MessageType.SandboxExecOutput}

both = pytest.mark.parametrize("kind", [RUN, EXEC])


def request(kind: MessageType, **fields: Any) -> sandbox_v1.RunRequest | sandbox_v1.ExecRequest:  # noqa: ANN401  any field
    message = sandbox_v1.RunRequest if kind == RUN else sandbox_v1.ExecRequest
    return message(**{"id": "box", "cmd": ["scripted"], **fields})


async def start(rig: Rig, kind: MessageType = EXEC, trace_id: str = "t", **fields: Any) -> FakeProcess:  # noqa: ANN401  any field
    """A process that has just been started, in a sandbox that is made for the first."""
    if not rig.sandboxes.manager.list():
        await rig.sandboxes.create("box")
    program = rig.sandboxes.script(*fields.get("cmd", ()))
    await rig.peer.send(kind, request(kind, **fields), trace_id=trace_id)
    return await program.process()


async def output(rig: Rig, kind: MessageType = EXEC) -> tuple[bytes, bytes, int]:
    """All that comes up to the last frame: stdout, stderr, and the exit code."""
    streams = {"stdout": b"", "stderr": b""}
    while not (reply := await rig.next(OUTPUTS[kind])).done:
        streams[reply.stream] += reply.data
    assert (reply.stream, reply.data) == ("exit", b"")
    return streams["stdout"], streams["stderr"], reply.exit_code


@both
async def test_a_process_is_started_as_the_request_has_it(rig: Rig, kind: MessageType) -> None:
    process = await start(rig, kind, cmd=["sh", "-c", ""], env={"A": "b"}, working_dir="/", user="1", timeout_seconds=7)
    assert process.sandbox_id == "box"
    assert process.command == ExecSpec(
        argv=("sh", "-c", ""), env={"A": "b"}, working_dir="/", user="1", terminal=None, timeout=7.0
    )


@both
async def test_output_comes_in_frames_of_its_stream_and_the_exit_comes_last_once(rig: Rig, kind: MessageType) -> None:
    process = await start(rig, kind, trace_id="run-1")
    process.write(b"out\x00\xff")
    frame = await rig.peer.receive()
    assert (frame.type, frame.trace_id) == (REPLIES[kind], "run-1")
    assert OUTPUTS[kind].FromString(frame.payload) == OUTPUTS[kind](stream="stdout", data=b"out\x00\xff")
    process.write_error(b"err")
    assert await rig.next(OUTPUTS[kind]) == OUTPUTS[kind](stream="stderr", data=b"err")
    process.exit(3)
    assert await rig.next(OUTPUTS[kind]) == OUTPUTS[kind](stream="exit", exit_code=3, done=True)
    assert (await rig.ask(MessageType.PingRequest)).type == MessageType.PingResponse


@both
@pytest.mark.parametrize("code", [0, 1, 126, 127, 128 + 9, 255])
async def test_the_exit_code_is_the_processs(rig: Rig, kind: MessageType, code: int) -> None:
    process = await start(rig, kind)
    process.exit(code)
    assert await output(rig, kind) == (b"", b"", code)


@both
async def test_a_command_that_is_not_there_is_127_with_a_line_on_stderr(rig: Rig, kind: MessageType) -> None:
    await rig.sandboxes.create("box")
    await rig.peer.send(kind, request(kind, cmd=["no-such"]), trace_id="t")
    assert await output(rig, kind) == (b"", b"no-such: not found\n", 127)


@both
async def test_the_timeout_kills(rig: Rig, autojump_clock: MockClock, kind: MessageType) -> None:
    process = await start(rig, kind, timeout_seconds=7)
    begun = trio.current_time()
    process.write(b"before")
    assert await output(rig, kind) == (b"before", b"", 137)
    assert trio.current_time() - begun == pytest.approx(7)


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, 65536, 1 << 20, (1 << 21) + 1])
async def test_pieces_of_any_size_arrive_as_they_are_in_one_frame_each(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("arcbox_guest.sandboxes._fake_programs.PIECE", 1 << 22)
    process = await start(rig)
    data = bytes(index % 251 for index in range(size))
    process.write(data)
    assert await rig.next(sandbox_v1.ExecOutput) == sandbox_v1.ExecOutput(stream="stdout", data=data)


async def test_what_was_written_before_the_exit_comes_before_it(rig: Rig) -> None:
    process = await start(rig)
    data = b"".join(b"%d\n" % number for number in range(50_000))
    process.write(data)
    process.write_error(data[::-1])
    process.exit(0)
    assert await output(rig) == (data, data[::-1], 0)


async def test_a_process_that_closed_its_output_still_runs(rig: Rig, autojump_clock: MockClock) -> None:
    process = await start(rig)
    assert process.stderr is not None
    process.stdout.end()
    process.stderr.end()
    with trio.move_on_after(3600) as patience:
        await rig.peer.receive()
    assert patience.cancelled_caught
    process.exit(5)
    assert await output(rig) == (b"", b"", 5)


@both
async def test_a_daemon_that_holds_the_output_keeps_the_stream_open_for_a_second(
    rig: Rig, autojump_clock: MockClock, kind: MessageType
) -> None:
    process = await start(rig, kind)
    process.leave_behind(holds_output=True)
    process.exit(0)
    await wait_all_tasks_blocked()
    exited = trio.current_time()
    await trio.sleep(0.9)
    process.write(b"by the daemon")
    assert await output(rig, kind) == (b"by the daemon", b"", 0)
    assert trio.current_time() - exited == pytest.approx(1.0)


async def test_a_daemon_that_lets_go_of_the_output_is_not_waited_for(rig: Rig, autojump_clock: MockClock) -> None:
    process = await start(rig)
    process.leave_behind(holds_output=False)
    process.exit(0)
    assert await output(rig) == (b"", b"", 0)
    assert trio.current_time() == 0


async def test_a_daemon_that_never_stops_writing_does_not_keep_the_stream_open(
    rig: Rig, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    process = await start(rig)

    async def chatter() -> None:
        while True:
            process.write(b"x" * 1000)
            await trio.sleep(0.001)

    nursery.start_soon(chatter)
    process.leave_behind(holds_output=True)
    process.exit(0)
    stdout, _, exit_code = await output(rig)
    assert exit_code == 0
    assert 0 < len(stdout) <= 1100 * 1000


async def test_the_exit_is_told_only_when_the_sandbox_is_ready_again(rig: Rig) -> None:
    for _ in range(3):
        process = await start(rig, RUN)
        process.exit(0)
        assert await output(rig, RUN) == (b"", b"", 0)
        assert rig.sandboxes.manager.get("box").state is State.READY


@both
async def test_the_peer_going_away_kills_the_process(rig: Rig, kind: MessageType) -> None:
    process = await start(rig, kind)
    rig.hang_up()
    assert await process.wait() == 137


@both
async def test_the_end_of_the_sandbox_is_the_end_of_its_processes(rig: Rig, kind: MessageType) -> None:
    process = await start(rig, kind)
    process.write(b"last words")
    rig.sandboxes.driver.sandboxes["box"].lose_init("it was killed")
    assert await output(rig, kind) == (b"last words", b"", 137)


async def test_many_processes_on_one_connection_do_not_meet(rig: Rig) -> None:
    processes = [await start(rig, trace_id=str(number)) for number in range(20)]
    for number, process in enumerate(processes):
        process.write(b"%d" % number)
        process.exit(number)
    seen: dict[str, list[sandbox_v1.ExecOutput]] = {}
    for _ in range(40):
        frame = await rig.peer.receive()
        seen.setdefault(frame.trace_id, []).append(sandbox_v1.ExecOutput.FromString(frame.payload))
    assert seen == {
        str(number): [
            sandbox_v1.ExecOutput(stream="stdout", data=b"%d" % number),
            sandbox_v1.ExecOutput(stream="exit", exit_code=number, done=True),
        ]
        for number in range(20)
    }


@pytest.mark.parametrize("tty", [False, True])
async def test_run_has_an_empty_stdin(rig: Rig, *, tty: bool) -> None:
    await rig.sandboxes.create("box")
    await rig.peer.send(RUN, request(RUN, cmd=["cat"], tty=tty), trace_id="t")
    assert await output(rig, RUN) == (b"", b"", 0)


async def test_run_needs_a_sandbox_that_is_ready_and_exec_does_not_mind_others(rig: Rig) -> None:
    await rig.sandboxes.create("box", until=Action.RUNNING, cmd=("sleep", "9"))
    assert (await rig.refusal(RUN, request(RUN))).code == 409
    (await start(rig, EXEC)).exit(0)
    assert await output(rig, EXEC) == (b"", b"", 0)


@both
async def test_nothing_runs_in_a_sandbox_before_it_is_ready(rig: Rig, kind: MessageType) -> None:
    rig.sandboxes.driver.faults["create"] = trio.Event()
    await rig.sandboxes.create("box", until=Action.CREATED)
    assert (await rig.refusal(kind, request(kind))).code == 409


@both
async def test_nothing_runs_in_a_sandbox_that_has_failed_or_was_stopped(rig: Rig, kind: MessageType) -> None:
    await rig.sandboxes.create("box")
    await rig.sandboxes.manager.stop("box")
    assert (await rig.refusal(kind, request(kind))).code == 409
    rig.sandboxes.driver.faults["create"] = GuestError("no")
    await rig.sandboxes.create("other", until=Action.FAILED)
    assert (await rig.refusal(kind, request(kind, id="other"))).code == 409


@both
async def test_a_sandbox_that_is_not_there_is_error_404_and_the_connection_goes_on(rig: Rig, kind: MessageType) -> None:
    frame = await rig.ask(kind, request(kind))
    assert ErrorReply.decode(frame.payload).code == 404
    (await start(rig, kind)).exit(0)
    assert await output(rig, kind) == (b"", b"", 0)


@both
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgumentError("no such user: x"), 400),
        (UnavailableError("its init is gone"), 503),
        (GuestError("crun exec failed"), 500),
    ],
)
async def test_a_process_that_can_not_be_started_is_an_error_with_its_code(
    rig: Rig, kind: MessageType, error: Exception, code: int
) -> None:
    await rig.sandboxes.create("box")
    rig.sandboxes.driver.faults["process"] = error
    refusal = await rig.refusal(kind, request(kind))
    assert (refusal.code, refusal.message) == (code, str(error))


@both
@pytest.mark.parametrize(
    "fields",
    [
        {"cmd": []},
        {"cmd": [""]},
        {"cmd": ["a\0"]},
        {"env": {"A=": ""}},
        {"env": {"": ""}},
        {"working_dir": "tmp"},
        {"user": "\0"},
    ],
)
async def test_what_no_process_can_be_is_error_400(rig: Rig, kind: MessageType, fields: dict[str, Any]) -> None:
    await rig.sandboxes.create("box")
    assert (await rig.refusal(kind, request(kind, **fields))).code == 400
    assert ("process", "box") not in rig.sandboxes.driver.calls
