"""One connection, over memory streams: order, slow commands, streams, errors, and how it ends."""

from __future__ import annotations

import logging
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.settings import Limits
from arcbox_agent.testing import VERSION, MemoryPeer, memory_connection
from arcbox_guest.errors import ConflictError, GuestError, NotFoundError, TimedOutError, UnavailableError
from arcbox_handlers import CommandError, Registry
from arcbox_handlers.power import Shutdown
from arcbox_handlers.system import GetSystemInfo, Ping
from arcbox_protocol import ErrorReply, Frame, MessageType, arcbox_v1, encode_frame, sandbox_v1

if TYPE_CHECKING:
    from tests.agent.conftest import Stage

T = MessageType


def hold(name: str) -> sandbox_v1.InspectSandboxRequest:
    return sandbox_v1.InspectSandboxRequest(id=name)


def hold_slow(name: str) -> sandbox_v1.StopSandboxRequest:
    return sandbox_v1.StopSandboxRequest(id=name)


async def ping(peer: MemoryPeer, message: str = "", trace_id: str = "") -> None:
    await peer.send(T.PingRequest, arcbox_v1.AgentPingRequest(message=message), trace_id=trace_id)


async def receive_error(peer: MemoryPeer, trace_id: str = "") -> ErrorReply:
    frame = await peer.receive()
    assert (frame.type, frame.trace_id) == (T.Error, trace_id)
    return ErrorReply.decode(frame.payload)


async def receive_pong(peer: MemoryPeer) -> str:
    frame = await peer.receive()
    assert frame.type == T.PingResponse
    return arcbox_v1.AgentPingResponse.FromString(frame.payload).message


async def still_answers(peer: MemoryPeer) -> bool:
    await ping(peer, "still there?")
    return await receive_pong(peer) == "pong: still there?"


# Order


async def test_a_reply_carries_the_trace_id_and_the_version() -> None:
    async with memory_connection() as peer:
        await ping(peer, trace_id="träce")
        frame = await peer.receive()
    assert frame.trace_id == "träce"
    assert arcbox_v1.AgentPingResponse.FromString(frame.payload).version == VERSION


async def test_a_request_that_was_answered_takes_no_memory_while_its_connection_is_idle() -> None:
    size = 8 << 20
    async with memory_connection() as peer:
        assert await still_answers(peer)  # what is made once is made
        tracemalloc.start()
        try:
            await peer.send(T.PingRequest, arcbox_v1.AgentPingRequest(message="x" * size))
            assert len((await peer.receive()).payload) > size
            await wait_all_tasks_blocked()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < size / 2


async def test_requests_are_answered_in_the_order_they_came(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxInspectRequest, hold("first"), trace_id="1")
        await ping(peer, trace_id="2")
        await wait_all_tasks_blocked()
        stage.gate("first").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["1", "2"]


async def test_one_request_is_carried_out_at_a_time(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxInspectRequest, hold("first"), trace_id="1")
        await peer.send(T.SandboxInspectRequest, hold("second"), trace_id="2")
        await wait_all_tasks_blocked()
        assert stage.log == ["first began"]
        stage.gate("first").set()
        stage.gate("second").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["1", "2"]


async def test_a_slow_request_with_a_trace_id_may_be_overtaken(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxStopRequest, hold_slow("slow"), trace_id="slow")
        await ping(peer, trace_id="quick")
        assert (await peer.receive()).trace_id == "quick"
        stage.gate("slow").set()
        assert (await peer.receive()) == Frame(T.SandboxStopResponse, "slow", b"")


async def test_a_slow_request_without_a_trace_id_waits_its_turn(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxStopRequest, hold_slow("slow"))
        await ping(peer, trace_id="quick")
        await wait_all_tasks_blocked()
        stage.gate("slow").set()
        assert [(await peer.receive()).type for _ in range(2)] == [T.SandboxStopResponse, T.PingResponse]


async def test_a_slow_request_whose_trace_id_is_in_flight_waits_its_turn(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxStopRequest, hold_slow("first"), trace_id="same")
        await peer.send(T.SandboxStopRequest, hold_slow("second"), trace_id="same")
        await ping(peer, trace_id="quick")
        await wait_all_tasks_blocked()
        stage.gate("second").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["same", "quick"]
        assert "first ended" not in stage.log
        stage.gate("first").set()
        assert (await peer.receive()).trace_id == "same"


async def test_a_slow_request_with_the_trace_id_of_a_stream_waits_its_turn(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="same")
        await peer.send(T.SandboxStopRequest, hold_slow("slow"), trace_id="same")
        await ping(peer, trace_id="quick")
        await wait_all_tasks_blocked()
        stage.gate("slow").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["same", "quick"]


async def test_a_trace_id_is_free_again_once_its_slow_request_is_answered(stage: Stage) -> None:
    stage.gate("first").set()
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxStopRequest, hold_slow("first"), trace_id="same")
        await peer.receive()
        await peer.send(T.SandboxStopRequest, hold_slow("second"), trace_id="same")
        assert await still_answers(peer)


async def test_slow_requests_beyond_the_limit_hold_up_the_connection(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry, limits=Limits(max_concurrent_requests=2)) as peer:
        for name in ("a", "b", "c"):
            await peer.send(T.SandboxStopRequest, hold_slow(name), trace_id=name)
        await ping(peer, trace_id="quick")
        await wait_all_tasks_blocked()
        assert sorted(stage.log) == ["a began", "b began"]
        stage.gate("a").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["a", "quick"]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["ping", "unknown", "corrupt", "unsupported", "fails", "info"]), max_size=200),
    st.integers(1, 5000),
)
async def test_any_requests_however_cut_are_answered_in_order(kinds: list[str], size: int) -> None:
    requests: dict[str, tuple[int, bytes]] = {
        "ping": (T.PingRequest, b""),
        "unknown": (0x7777, b"abc"),
        "corrupt": (T.PingRequest, b"\xff"),
        "unsupported": (T.SandboxCheckpointRequest, b""),
        "fails": (T.ShutdownRequest, b"\x08"),
        "info": (T.GetSystemInfoRequest, b"what is in here is ignored"),
    }
    replies = {"ping": T.PingResponse, "info": T.GetSystemInfoResponse}
    data = b"".join(encode_frame(requests[kind][0], str(i), requests[kind][1]) for i, kind in enumerate(kinds))

    async def send() -> None:
        for start in range(0, len(data), size):
            await peer.stream.send_all(data[start : start + size])

    registry = Registry([Ping, GetSystemInfo, Shutdown])
    async with memory_connection(registry=registry) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for i, kind in enumerate(kinds):
            frame = await peer.receive()
            assert (frame.trace_id, frame.type) == (str(i), replies.get(kind, T.Error))


# Errors


async def test_a_payload_that_does_not_parse_is_error_400(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for request in (T.PingRequest, T.SandboxInspectRequest, T.SandboxStopRequest, T.SandboxExecRequest):
            await peer.send(request, b"\xff", trace_id="a")
            error = await receive_error(peer, "a")
            assert error.code == 400
            assert error.message.startswith("invalid request: ")
            assert request.name in error.message
        assert await still_answers(peer)


@pytest.mark.parametrize("request_type", [0x0000, 0x7777, 0x1001, 0x1030, 0xFFFF, 0xFFFF_FFFF], ids=hex)
async def test_a_type_that_is_no_request_is_skipped_with_error_400(request_type: int) -> None:
    async with memory_connection() as peer:
        await peer.send(request_type, b"some payload", trace_id="a")
        error = await receive_error(peer, "a")
        assert error.code == 400
        assert f"0x{request_type:04X}" in error.message
        assert await still_answers(peer)


@pytest.mark.parametrize(
    "request_type", [T.SandboxCheckpointRequest, T.KubernetesStartRequest, T.SandboxRestoreRequest]
)
async def test_a_request_that_has_no_command_is_error_501_with_its_name(
    request_type: MessageType, stage: Stage
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(request_type, trace_id="a")
        error = await receive_error(peer, "a")
        assert error.code == 501
        assert request_type.name in error.message
        assert await still_answers(peer)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (NotFoundError("no such sandbox: x"), 404),
        (ConflictError("it exists"), 409),
        (UnavailableError("not now"), 503),
        (TimedOutError("too late"), 504),
        (GuestError("the disk is full"), 500),
        (CommandError(2, "no such file"), 2),
    ],
)
async def test_a_foreseen_error_is_told_in_its_own_words(
    stage: Stage, raised: Exception, code: int, *, quick: bool
) -> None:
    stage.error = raised
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.RuntimeStatusRequest if quick else T.KubernetesStatusRequest, trace_id="a")
        assert await receive_error(peer, "a") == ErrorReply(code, str(raised))
        assert await still_answers(peer)


@pytest.mark.parametrize("request_type", [T.RuntimeStatusRequest, T.KubernetesStatusRequest, T.SandboxEventsRequest])
async def test_an_unexpected_error_is_500_and_its_story_only_in_the_log(
    stage: Stage, request_type: MessageType, caplog: pytest.LogCaptureFixture
) -> None:
    stage.error = ZeroDivisionError("the secret of the agent")
    stage.gate("stream").set()
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(request_type, trace_id="a")
        error = await receive_error(peer, "a")
        assert error.code == 500
        assert "secret" not in error.message
        assert len(error.message) < 100
        assert "Traceback" in caplog.text
        assert "the secret of the agent" in caplog.text
        assert await still_answers(peer)


async def test_a_group_of_errors_is_500_too(stage: Stage) -> None:
    stage.error = ExceptionGroup("several", [ValueError("one"), NotFoundError("other")])
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.KubernetesStatusRequest)
        assert (await receive_error(peer)).code == 500
        assert await still_answers(peer)


# Streams


async def test_streams_run_beside_requests_and_carry_their_trace_ids(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for name in ("one", "two"):
            await peer.send(T.SandboxEventsRequest, sandbox_v1.SandboxEventsRequest(id=name), trace_id=name)
        await wait_all_tasks_blocked()
        one, two = stage.streams["one"], stage.streams["two"]
        await two.send(sandbox_v1.SandboxEvent(action="b"))
        await one.send(sandbox_v1.SandboxEvent(action="a"))
        await two.send_payload(b"\x12\x01", b"c")
        frames = [await peer.receive() for _ in range(3)]
    assert [(frame.type, frame.trace_id) for frame in frames] == [
        (T.SandboxEvent, "two"),
        (T.SandboxEvent, "one"),
        (T.SandboxEvent, "two"),
    ]
    assert [sandbox_v1.SandboxEvent.FromString(frame.payload).action for frame in frames] == ["b", "a", "c"]


async def test_what_comes_right_behind_a_stream_is_handled_after_the_stream_has_begun(stage: Stage) -> None:
    messages = [(T.SandboxEventsRequest, sandbox_v1.SandboxEventsRequest()), (T.SandboxInspectRequest, hold("next"))]
    together = b"".join(encode_frame(kind, "", message.SerializeToString()) for kind, message in messages)
    async with memory_connection(registry=stage.registry) as peer:
        await peer.stream.send_all(together)
        await wait_all_tasks_blocked()
        assert stage.log == ["stream began", "next began"]


async def test_two_streams_with_one_trace_id_are_a_conflict(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="same")
        await peer.send(T.SandboxEventsRequest, trace_id="same")
        error = await receive_error(peer, "same")
        assert (error.code, stage.log) == (409, ["stream began"])
        assert await still_answers(peer)


async def test_input_goes_to_the_session_with_its_trace_id(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for name in ("a", "b"):
            await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id=name), trace_id=name)
        for name in ("b", "a"):
            await peer.send(T.SandboxExecInput, name.upper().encode(), trace_id=name)
        frames = [await peer.receive() for _ in range(2)]
    said = {frame.trace_id: sandbox_v1.ExecOutput.FromString(frame.payload).data for frame in frames}
    assert said == {"a": b"a 0x33 A", "b": b"b 0x33 B"}


async def test_input_right_behind_its_request_is_not_lost(stage: Stage) -> None:
    request = encode_frame(T.SandboxExecRequest, "a", sandbox_v1.ExecRequest(id="x").SerializeToString())
    async with memory_connection(registry=stage.registry) as peer:
        await peer.stream.send_all(
            request + encode_frame(T.SandboxExecInput, "a", b"hi") + encode_frame(T.SandboxExecInput, "a", b"")
        )
        said = [sandbox_v1.ExecOutput.FromString((await peer.receive()).payload) for _ in range(2)]
    assert said[0].data == b"x 0x33 hi"
    assert said[1].done


async def test_input_without_a_trace_id_goes_to_the_only_session(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="e")  # takes no input: it does not count
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="x"), trace_id="a")
        await peer.send(T.SandboxExecResize, sandbox_v1.TerminalSize(width=3))
        frame = await peer.receive()
    assert frame.trace_id == "a"
    assert sandbox_v1.ExecOutput.FromString(frame.payload).data.startswith(b"x 0x34 ")


async def test_late_input_of_a_session_that_has_ended_never_reaches_another_one(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for name in ("ended", "other"):
            await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id=name), trace_id=name)
        await peer.send(T.SandboxExecInput, trace_id="ended")
        assert (await peer.receive()).trace_id == "ended"
        await peer.send(T.SandboxExecInput, b"rm -rf /", trace_id="ended")
        await peer.send(T.SandboxExecInput, b"mine", trace_id="other")
        frame = await peer.receive()
    assert (frame.trace_id, sandbox_v1.ExecOutput.FromString(frame.payload).data) == ("other", b"other 0x33 mine")
    assert "input dropped" in caplog.text


@pytest.mark.parametrize(("sessions", "trace_id"), [(0, ""), (2, ""), (0, "unknown"), (1, "unknown"), (2, "unknown")])
async def test_input_that_is_for_no_session_is_dropped_with_a_warning(
    stage: Stage, sessions: int, trace_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for name in "ab"[:sessions]:
            await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id=name), trace_id=name)
        await peer.send(T.SandboxExecInput, b"secret", trace_id=trace_id)
        assert await still_answers(peer)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "input dropped" in record.message
    assert "secret" not in caplog.text


async def test_more_dropped_input_for_the_same_stream_is_not_logged_again(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for trace_id in ("a", "a", "a", "b", "a"):
            await peer.send(T.SandboxExecInput, b"x", trace_id=trace_id)
        assert await still_answers(peer)
    assert [getattr(record, "levelname", "") for record in caplog.records].count("WARNING") == 2


async def test_input_for_a_session_that_could_not_start_and_a_late_end_of_stdin_are_not_worth_a_warning(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxExecRequest, b"\xff", trace_id="corrupt")
        await peer.send(T.SandboxExecInput, b"never asked for", trace_id="corrupt")
        assert (await receive_error(peer, "corrupt")).code == 400
        await peer.send(T.SandboxExecInput, trace_id="ended")
        assert await still_answers(peer)
    async with memory_connection() as peer:
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="none", cmd=["sh"]), trace_id="refused")
        assert (await receive_error(peer, "refused")).code == 404
        await peer.send(T.SandboxExecInput, b"never started", trace_id="refused")
        assert await still_answers(peer)
    assert "input dropped" not in caplog.text


async def test_a_stream_over_the_limit_is_503_and_when_one_ends_the_next_is_served(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry, limits=Limits(max_streams=2)) as peer:
        for name in ("", "a", "b"):
            await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="x"), trace_id=name)
        assert (await receive_error(peer, "b")).code == 503
        await peer.send(T.SandboxExecInput, trace_id="a")
        assert (await peer.receive()).trace_id == "a"
        await wait_all_tasks_blocked()
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="x"), trace_id="b")
        await peer.send(T.SandboxExecInput, b"hi", trace_id="b")
        assert (await peer.receive()).type == T.SandboxExecOutput


@pytest.mark.parametrize("frame", [1024, 100_000])
async def test_a_session_that_reads_no_stdin_holds_up_its_connection_only_when_1_mib_waits(
    frame: int, stage: Stage
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="deaf"), trace_id="a")
        for _ in range(800_000 // frame):
            await peer.send(T.SandboxExecInput, bytes(frame), trace_id="a")
        assert await still_answers(peer)
        for _ in range(500_000 // frame):
            await peer.send(T.SandboxExecInput, bytes(frame), trace_id="a")
        await ping(peer, trace_id="held up")
        await wait_all_tasks_blocked()
        assert "deaf ended" not in stage.log
        stage.gate("deaf").set()
        assert (await peer.receive()).trace_id == "held up"


async def test_input_without_a_trace_id_is_dropped_even_if_one_of_several_sessions_has_none(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        for trace_id in ("", "a"):
            await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="x"), trace_id=trace_id)
        await peer.send(T.SandboxExecInput, b"whose?")
        assert await still_answers(peer)
    assert "input dropped" in caplog.text


async def test_input_for_a_session_that_ends_meanwhile_is_dropped(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxExecRequest, sandbox_v1.ExecRequest(id="deaf"), trace_id="a")
        for _ in range(3):
            await peer.send(T.SandboxExecInput, b"x", trace_id="a")
        await ping(peer, trace_id="behind")
        await wait_all_tasks_blocked()
        stage.gate("deaf").set()
        assert (await peer.receive()).trace_id == "behind"


# The log


@pytest.mark.parametrize(("level", "logged"), [("DEBUG", ["DEBUG", "INFO"]), ("INFO", ["INFO"])])
async def test_quick_requests_are_logged_for_who_debugs_and_others_always(
    level: str, logged: list[str], stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level)
    stage.gate("it").set()
    async with memory_connection(registry=stage.registry) as peer:
        await ping(peer)
        await receive_pong(peer)
        await peer.send(T.SandboxInspectRequest, hold("it"))
        await peer.receive()
    answered = [record for record in caplog.records if record.message == "request answered"]
    assert [record.levelname for record in answered] == logged
    assert all(vars(record)["duration_ms"] >= 0 for record in answered)


# How it ends


async def test_the_peer_going_away_cancels_what_runs(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await peer.send(T.SandboxStopRequest, hold_slow("slow"), trace_id="slow")
        await peer.send(T.SandboxInspectRequest, hold("in turn"))
        await wait_all_tasks_blocked()
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert sorted(stage.log[3:]) == ["in turn was cancelled", "slow was cancelled", "stream ended"]


async def test_a_peer_that_says_nothing_may_stay(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_connection() as peer:
        await trio.sleep(80_000)
        assert await still_answers(peer)
        await trio.sleep(80_000)
        assert await still_answers(peer)


@pytest.mark.parametrize("begun", [1, 4, 9, 12])
async def test_a_peer_that_does_not_finish_a_frame_is_told_and_disconnected(
    begun: int, autojump_clock: trio.testing.MockClock
) -> None:
    frame = encode_frame(T.PingRequest, "a", b"\x0a\x01x")
    async with memory_connection(limits=Limits(frame_timeout=30)) as peer:
        await trio.sleep(100)
        await peer.stream.send_all(frame + frame[:begun])
        assert await receive_pong(peer) == "pong: x"
        started = trio.current_time()
        error = await receive_error(peer)
        assert error.code == 504
        assert "30 s" in error.message
        assert trio.current_time() - started == pytest.approx(30)
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()


async def test_a_peer_that_finishes_its_frame_just_in_time_may_stay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    frame = encode_frame(T.PingRequest, "a", b"\x0a\x01x")
    async with memory_connection(limits=Limits(frame_timeout=30)) as peer:
        for _ in range(3):
            for byte in frame:
                await peer.stream.send_all(bytes([byte]))
                await trio.sleep(29 / len(frame))
            assert await receive_pong(peer) == "pong: x"
        await trio.sleep(100)
        assert await still_answers(peer)


async def test_a_frame_that_is_begun_while_a_command_runs_has_its_time_too(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_connection(registry=stage.registry, limits=Limits(frame_timeout=30)) as peer:
        await peer.send(T.SandboxInspectRequest, hold("long"), trace_id="a")
        await wait_all_tasks_blocked()
        await peer.stream.send_all(encode_frame(T.PingRequest, "b")[:5])
        await trio.sleep(20)
        stage.gate("long").set()
        assert (await peer.receive()).trace_id == "a"
        started = trio.current_time()
        assert (await receive_error(peer)).code == 504
        assert trio.current_time() - started == pytest.approx(10)


async def test_the_time_that_the_agent_takes_does_not_count_against_a_frame(
    stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    request = encode_frame(T.SandboxInspectRequest, "a", hold("long").SerializeToString())
    later = encode_frame(T.PingRequest, "b")
    async with memory_connection(registry=stage.registry, limits=Limits(frame_timeout=30)) as peer:
        await peer.stream.send_all(request)
        await wait_all_tasks_blocked()
        await peer.stream.send_all(later)
        await wait_all_tasks_blocked()
        await peer.stream.send_all(later + later[:5])  # can't be read: the reader is as far ahead as it may be
        await trio.sleep(100)
        stage.gate("long").set()
        assert [(await peer.receive()).trace_id for _ in range(3)] == ["a", "b", "b"]
        await peer.stream.send_all(later[5:])
        assert (await peer.receive()).trace_id == "b"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\0\0\0\3abc", 400),
        (b"\0\0\0\x08\0\0\0\1\0\x50ab", 400),
        (b"\x40\0\0\0", 413),
        (b"\0\0\4\1", 413),
    ],
)
async def test_a_frame_that_can_not_be_followed_by_another_ends_the_connection(
    data: bytes, code: int, stage: Stage, autojump_clock: trio.testing.MockClock
) -> None:
    stage.gate("in turn").set()
    in_turn = encode_frame(T.SandboxInspectRequest, "a", hold("in turn").SerializeToString())
    async with memory_connection(registry=stage.registry, limits=Limits(max_frame=1024)) as peer:
        await peer.send(T.SandboxEventsRequest, trace_id="stream")
        await peer.stream.send_all(encode_frame(T.PingRequest, "b") + in_turn + data)
        await peer.stream.send_all(b"more of that")
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["b", "a"]
        assert (await receive_error(peer)).code == code
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()
        assert trio.current_time() == 0, "the end came late"
    assert stage.log[-1] == "stream ended"


@pytest.mark.parametrize("pings", [0, 1, 2, 8])
async def test_a_fault_ends_a_connection_that_says_nothing_more_whatever_it_said_before(pings: int) -> None:
    async with memory_connection() as peer:
        for _ in range(pings):
            assert await still_answers(peer)
        await peer.stream.send_all(b"\0\0\0\0")
        with trio.fail_after(5):
            assert (await receive_error(peer)).code == 400
            with pytest.raises(EOFError, match="between frames"):
                await peer.receive()


async def test_a_fault_right_behind_an_answered_poll_ends_the_connection_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_connection() as peer:
        for _ in range(5):
            await ping(peer)
        await peer.stream.send_all(b"\0\0\0\0")
        for _ in range(5):
            await receive_pong(peer)
        assert (await receive_error(peer)).code == 400


async def test_draining_finishes_what_was_taken_and_takes_no_more(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxStopRequest, hold_slow("slow"), trace_id="slow")
        await peer.send(T.SandboxInspectRequest, hold("in turn"), trace_id="in turn")
        await ping(peer, trace_id="taken")
        await wait_all_tasks_blocked()
        peer.connection.drain()
        await ping(peer, trace_id="too late")
        stage.gate("in turn").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["in turn", "taken"]
        stage.gate("slow").set()
        assert (await peer.receive()).trace_id == "slow"
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()


async def test_draining_finishes_what_was_read_while_the_agent_was_busy(stage: Stage) -> None:
    async with memory_connection(registry=stage.registry) as peer:
        await peer.send(T.SandboxInspectRequest, hold("in turn"), trace_id="0")
        await wait_all_tasks_blocked()
        await ping(peer, trace_id="1")
        await wait_all_tasks_blocked()
        peer.connection.drain()
        await wait_all_tasks_blocked()
        stage.gate("in turn").set()
        assert [(await peer.receive()).trace_id for _ in range(2)] == ["0", "1"]


async def test_draining_an_idle_connection_ends_it_at_once() -> None:
    async with memory_connection() as peer:
        assert await still_answers(peer)
        peer.connection.drain()
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()


async def test_draining_a_conversation_ends_it_at_once() -> None:
    async with memory_connection() as peer:
        for _ in range(8):
            assert await still_answers(peer)
        await wait_all_tasks_blocked()
        peer.connection.drain()
        with pytest.raises(EOFError, match="between frames"):
            await peer.receive()
