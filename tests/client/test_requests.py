"""Requests and replies on one connection, against a fake agent in memory."""

from __future__ import annotations

import errno
import inspect
import math
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import AgentClient, Mount, errors
from arcbox_client.testing import FakeAgent, Request, memory_pair
from arcbox_protocol import EXCHANGES, ErrorReply, MessageType, arcbox_sandbox_v1, arcbox_v1, sandbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.testing import MockClock

PONG = arcbox_v1.AgentPingResponse(message="pong", version="1.2.3")


@pytest.fixture
async def pair() -> AsyncIterator[tuple[AgentClient, FakeAgent]]:
    async with memory_pair() as both:
        yield both


Pair = tuple[AgentClient, FakeAgent]


def echo(request: Request) -> arcbox_v1.AgentPingResponse:
    return arcbox_v1.AgentPingResponse(message=arcbox_v1.AgentPingRequest.FromString(request.payload).message)


async def ping_and_keep(client: AgentClient, message: str, kept: dict[str, str]) -> None:
    kept[message] = (await client.ping(message)).message


async def test_a_ping_returns_what_the_agent_says() -> None:
    async with memory_pair({MessageType.PingRequest: lambda _: PONG}) as (client, agent):
        assert await client.ping("hello", timestamp_secs=17) == PONG
    assert agent.requests[0].message == arcbox_v1.AgentPingRequest(message="hello", timestamp_secs=17)


async def test_a_ping_carries_no_clock_unless_it_is_told_to() -> None:
    async with memory_pair({MessageType.PingRequest: lambda _: PONG}) as (client, agent):
        await client.ping()
    assert agent.requests[0].message == arcbox_v1.AgentPingRequest()


UNARY_CALLS: list[tuple[MessageType, Callable[[AgentClient], Awaitable[object]]]] = [
    (MessageType.PingRequest, lambda c: c.ping()),
    (MessageType.GetSystemInfoRequest, lambda c: c.system_info()),
    (MessageType.EnsureRuntimeRequest, lambda c: c.ensure_runtime()),
    (MessageType.RuntimeStatusRequest, lambda c: c.runtime_status()),
    (MessageType.KubernetesStartRequest, lambda c: c.kubernetes_start()),
    (MessageType.KubernetesStopRequest, lambda c: c.kubernetes_stop()),
    (MessageType.KubernetesDeleteRequest, lambda c: c.kubernetes_delete()),
    (MessageType.KubernetesStatusRequest, lambda c: c.kubernetes_status()),
    (MessageType.KubernetesKubeconfigRequest, lambda c: c.kubernetes_kubeconfig()),
    (MessageType.ShutdownRequest, lambda c: c.shutdown()),
    (MessageType.DiskTrimRequest, lambda c: c.disk_trim()),
    (MessageType.SandboxCreateRequest, lambda c: c.sandbox_create("s")),
    (MessageType.SandboxStopRequest, lambda c: c.sandbox_stop("s")),
    (MessageType.SandboxRemoveRequest, lambda c: c.sandbox_remove("s")),
    (MessageType.SandboxInspectRequest, lambda c: c.sandbox_inspect("s")),
    (MessageType.SandboxListRequest, lambda c: c.sandbox_list()),
    (MessageType.SandboxCheckpointRequest, lambda c: c.checkpoint("s")),
    (MessageType.SandboxRestoreRequest, lambda c: c.restore("p")),
    (MessageType.SandboxListSnapshotsRequest, lambda c: c.list_snapshots()),
    (MessageType.SandboxDeleteSnapshotRequest, lambda c: c.delete_snapshot("p")),
    (MessageType.WatchPortBindingsRequest, lambda c: c.watch_port_bindings()),
    (MessageType.KillAgentRequest, lambda c: c.kill_agent()),
    (MessageType.SandboxPortForwardRemoveRequest, lambda c: c.port_forward_remove("s", 80)),
    (MessageType.MakeDirRequest, lambda c: c.file_mkdir("s", "/d")),
    (MessageType.RemoveEntryRequest, lambda c: c.file_remove("s", "/d")),
    (MessageType.MoveEntryRequest, lambda c: c.file_move("s", "/d", "/e")),
    (MessageType.PauseSandboxRequest, lambda c: c.sandbox_pause("s")),
    (MessageType.ResumeSandboxRequest, lambda c: c.sandbox_resume("s")),
    (MessageType.SetLifecycleRequest, lambda c: c.sandbox_set_lifecycle("s", ttl=3)),
    (MessageType.StartExecutionRequest, lambda c: c.execution_start("s", ["true"])),
    (MessageType.WriteStdinRequest, lambda c: c.execution_write_stdin("s", "e", b"x", offset=0)),
    (MessageType.GetStdinStatusRequest, lambda c: c.execution_stdin_status("s", "e")),
    (MessageType.SignalExecutionRequest, lambda c: c.execution_signal("s", "e", 9)),
    (MessageType.ResizeExecutionTtyRequest, lambda c: c.execution_resize("s", "e", 80, 24)),
    (MessageType.WaitExecutionRequest, lambda c: c.execution_wait("s", "e")),
    (MessageType.WaitForPortRequest, lambda c: c.wait_for_port("s", 80)),
]
NOT_IN_THE_TABLE = {
    MessageType.MmapReadFileRequest,
    MessageType.SandboxRunRequest,
    MessageType.SandboxExecRequest,
    MessageType.SandboxEventsRequest,
    MessageType.SandboxExecInput,
    MessageType.SandboxExecResize,
    MessageType.WatchReadinessRequest,
    MessageType.WatchMemoryPressureRequest,
    MessageType.WatchStatsRequest,
    MessageType.MachineExecRequest,
    MessageType.MachineExecInput,
    MessageType.MachineExecResize,
    MessageType.SandboxPortForwardRequest,
    MessageType.SandboxFileReadRequest,
    MessageType.SandboxFileWriteRequest,
    MessageType.SandboxFileChunk,
    MessageType.StatFileRequest,
    MessageType.ListDirRequest,
    MessageType.WatchDirRequest,
    MessageType.AttachExecutionRequest,
    MessageType.ListExecutionsRequest,
}


def test_every_request_of_the_protocol_has_a_method() -> None:
    assert {request for request, _ in UNARY_CALLS} | NOT_IN_THE_TABLE == set(EXCHANGES)


@pytest.mark.parametrize(("request_type", "call"), UNARY_CALLS, ids=[request.name for request, _ in UNARY_CALLS])
async def test_a_method_sends_its_request_and_returns_the_message_of_its_reply(
    request_type: MessageType, call: Callable[[AgentClient], Awaitable[object]]
) -> None:
    reply = EXCHANGES[request_type].reply_message
    async with memory_pair({request_type: lambda _: reply() if reply else None}) as (client, agent):
        assert await call(client) == (reply() if reply else None)
    assert [request.type for request in agent.requests] == [request_type]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda c: c.sandbox_create(
                "box",
                labels={"a": "b"},
                cmd=["true"],
                vcpus=2,
                memory_mib=64,
                mounts=[Mount("/s", "/t", readonly=True), ("/u", "/v")],
                network="none",
                ttl=5,
                ssh_public_key="",
            ),
            sandbox_v1.CreateSandboxRequest(
                id="box",
                labels={"a": "b"},
                cmd=["true"],
                limits=sandbox_v1.ResourceLimits(vcpus=2, memory_mib=64),
                mounts=[
                    sandbox_v1.Mount(source="/s", target="/t", readonly=True),
                    sandbox_v1.Mount(source="/u", target="/v"),
                ],
                network=sandbox_v1.NetworkSpec(mode="none"),
                ttl_seconds=5,
                ssh_public_key="",
            ),
        ),
        (lambda c: c.ensure_runtime(start_if_needed=False), arcbox_v1.RuntimeEnsureRequest()),
        (lambda c: c.ensure_runtime(), arcbox_v1.RuntimeEnsureRequest(start_if_needed=True)),
        (lambda c: c.shutdown(timeout_seconds=7), arcbox_v1.ShutdownRequest(timeout_seconds=7)),
        (
            lambda c: c.sandbox_stop("box", timeout=7),
            sandbox_v1.StopSandboxRequest(id="box", timeout_seconds=7),
        ),
        (lambda c: c.sandbox_remove("box", force=True), sandbox_v1.RemoveSandboxRequest(id="box", force=True)),
        (
            lambda c: c.sandbox_list(state="ready", labels={"a": "b"}),
            sandbox_v1.ListSandboxesRequest(state="ready", labels={"a": "b"}),
        ),
        (
            lambda c: c.checkpoint("box", name="n", labels={"a": "b"}),
            sandbox_v1.CheckpointRequest(sandbox_id="box", name="n", labels={"a": "b"}),
        ),
        (
            lambda c: c.restore("snap", "new", labels={"a": "b"}, network_override=True, ttl=9),
            sandbox_v1.RestoreRequest(
                id="new", snapshot_id="snap", labels={"a": "b"}, network_override=True, ttl_seconds=9
            ),
        ),
        (
            lambda c: c.list_snapshots("box", labels={"a": "b"}),
            sandbox_v1.ListSnapshotsRequest(sandbox_id="box", labels={"a": "b"}),
        ),
        (
            lambda c: c.sandbox_set_lifecycle("box", ttl=0, on_idle="pause"),
            arcbox_sandbox_v1.SetLifecycleRequest(id="box", ttl_seconds=0, on_idle=arcbox_sandbox_v1.IDLE_ACTION_PAUSE),
        ),
        (
            lambda c: c.port_forward("box", 53, protocol="udp"),
            sandbox_v1.SandboxPortForwardRequest(id="box", sandbox_port=53, protocol=sandbox_v1.PORT_PROTOCOL_UDP),
        ),
        (
            lambda c: c.execution_start("box", ["sh"], execution_id="e", stdin=True, tty_size=(80, 24), timeout=3),
            arcbox_sandbox_v1.StartExecutionRequest(
                sandbox_id="box",
                execution_id="e",
                cmd=["sh"],
                stdin=True,
                tty_size=arcbox_sandbox_v1.TerminalSize(width=80, height=24),
                timeout_seconds=3,
            ),
        ),
        (
            lambda c: c.execution_signal("box", "e", 28),
            arcbox_sandbox_v1.SignalExecutionRequest(
                sandbox_id="box",
                execution_id="e",
                signal=28,  # type: ignore[arg-type]  # SIGWINCH, which has no name there
            ),
        ),
        (
            lambda c: c.file_move("box", "/a", "/b"),
            arcbox_sandbox_v1.MoveEntryRequest(id="box", from_path="/a", to_path="/b"),
        ),
        (lambda c: c.delete_snapshot("snap"), sandbox_v1.DeleteSnapshotRequest(snapshot_id="snap")),
    ],
    ids=lambda value: value.DESCRIPTOR.name if hasattr(value, "DESCRIPTOR") else "",
)
async def test_the_arguments_of_a_method_arrive(
    call: Callable[[AgentClient], Awaitable[object]], expected: object
) -> None:
    async with memory_pair({}) as (client, agent):
        with pytest.raises(errors.NotSupportedError):
            await call(client)
    assert agent.requests[0].message == expected


async def test_replies_find_their_requests_in_whatever_order_they_come(pair: Pair) -> None:
    client, agent = pair
    kept: dict[str, str] = {}
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(ping_and_keep, client, name, kept)
        requests = [await agent.receive() for _ in range(3)]
        assert len({request.trace_id for request in requests}) == 3
        for request in reversed(requests):
            await agent.reply(request, echo(request))
    assert kept == {"a": "a", "b": "b", "c": "c"}


async def test_a_thousand_requests_in_flight_get_their_own_replies() -> None:
    kept: dict[str, str] = {}
    async with memory_pair({MessageType.PingRequest: echo}) as (client, _), trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(ping_and_keep, client, str(number), kept)
    assert kept == {str(number): str(number) for number in range(1000)}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, errors.BadRequestError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (413, errors.TooLargeError),
        (500, errors.InternalError),
        (501, errors.NotSupportedError),
        (503, errors.UnavailableError),
        (504, errors.GuestTimedOutError),
        (418, errors.RequestFailedError),
        (-1, errors.RequestFailedError),
    ],
)
async def test_an_error_frame_becomes_the_error_of_its_code(code: int, kind: type[errors.RequestFailedError]) -> None:
    async with memory_pair({MessageType.SandboxInspectRequest: lambda _: ErrorReply(code, "so it is")}) as (
        client,
        agent,
    ):
        with pytest.raises(kind) as caught:
            await client.sandbox_inspect("box")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message) == (code, "so it is")
    assert caught.value.request is MessageType.SandboxInspectRequest
    assert caught.value.trace_id == agent.requests[0].trace_id
    assert str(caught.value) == f"SandboxInspectRequest: so it is ({code})"


async def test_an_errno_for_a_file_becomes_an_os_error() -> None:
    script = {MessageType.MmapReadFileRequest: lambda _: ErrorReply(errno.ENOENT, "No such file or directory: /x")}
    async with memory_pair(script) as (client, _):
        with pytest.raises(errors.FileReadError) as caught:
            await client.mmap_read_file("/x")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, errors.RequestFailedError)
    assert (caught.value.errno, caught.value.filename, caught.value.code) == (errno.ENOENT, "/x", errno.ENOENT)
    assert str(caught.value) == "No such file or directory: /x"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Not a regular file: /dev/zero", "Not a regular file: /dev/zero"),
        ("mmap failed (os error 22)", "Invalid argument: /dev/zero"),  # another agent's form
    ],
)
async def test_why_a_file_can_not_be_read_is_said_in_the_guests_words_if_they_fit(said: str, shown: str) -> None:
    async with memory_pair({MessageType.MmapReadFileRequest: lambda _: ErrorReply(errno.EINVAL, said)}) as (client, _):
        with pytest.raises(errors.FileReadError) as caught:
            await client.mmap_read_file("/dev/zero")
    assert (str(caught.value), caught.value.message) == (shown, said)


async def test_an_error_of_the_agent_is_no_errno_even_for_a_file() -> None:
    script = {MessageType.MmapReadFileRequest: lambda _: ErrorReply(500, "oh")}
    async with memory_pair(script) as (client, _):
        with pytest.raises(errors.InternalError):
            await client.mmap_read_file("/x")


async def test_zeros_that_the_agent_padded_a_file_with_are_not_returned() -> None:
    reply = arcbox_v1.MmapReadFileResponse(data=b"real\0\0\0\0", bytes_read=4)
    async with memory_pair({MessageType.MmapReadFileRequest: lambda _: reply}) as (client, _):
        assert await client.mmap_read_file("/x") == b"real"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a\x05hello\x10\x05",
        b"\x10\x05\x0a\x05hello",  # the other way round
        b"\x0a\x85\x80\x00hello\x10\x85\x00",  # varints with groups of zeros, as an agent sends that patches them
        b"\x0a\x03bad\x10\x03\x0a\x05hello\x10\x05",  # the last of a field counts
        b"\x0a\x05hello\x10\x05\x18\x01",  # a field of a later version
    ],
)
async def test_a_file_is_read_from_every_legal_form_of_the_reply(payload: bytes) -> None:
    assert arcbox_v1.MmapReadFileResponse.FromString(payload).data == b"hello"
    async with memory_pair({MessageType.MmapReadFileRequest: lambda _: payload}) as (client, _):
        assert await client.mmap_read_file("/x") == b"hello"


@pytest.mark.parametrize(
    "payload", [b"\x0a", b"\x0a\xff", b"\x0a\x09short", b"\x0a" + b"\xff" * 12, b"\x07", b"\x0a\x00\x10"]
)
async def test_a_broken_file_reply_is_a_protocol_violation(payload: bytes) -> None:
    async with memory_pair({MessageType.MmapReadFileRequest: lambda _: payload}) as (client, _):
        with pytest.raises(errors.ProtocolViolationError):
            await client.mmap_read_file("/x")


async def test_an_empty_file_reply_is_an_empty_file() -> None:
    async with memory_pair({MessageType.MmapReadFileRequest: lambda _: b""}) as (client, _):
        assert await client.mmap_read_file("/x") == b""


async def test_the_largest_file_reply_passes_the_inbound_limit() -> None:
    size = 64 * 1024 * 1024
    reply = arcbox_v1.MmapReadFileResponse(data=bytes(size), bytes_read=size)
    async with memory_pair({MessageType.MmapReadFileRequest: lambda _: reply}) as (client, _):
        assert len(await client.mmap_read_file("/x")) == size


async def test_a_reply_of_another_type_is_a_violation_and_the_connection_goes_on(pair: Pair) -> None:
    client, agent = pair
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            request = await agent.receive()
            await agent.send(MessageType.DiskTrimResponse, request.trace_id)
            await agent.reply(await agent.receive(), PONG)

        with pytest.raises(
            errors.ProtocolViolationError, match=r"PingRequest was answered with 0x100C \(DiskTrimResponse\)"
        ):
            await client.ping()
        assert await client.ping() == PONG


@pytest.mark.parametrize("answer", [b"\xff\xff", b"\x0a\x05"])
async def test_a_reply_that_does_not_parse_is_a_violation(answer: bytes) -> None:
    async with memory_pair({MessageType.PingRequest: lambda _: answer}) as (client, _):
        with pytest.raises(errors.ProtocolViolationError, match="PingRequest was answered with what does not parse"):
            await client.ping()


async def test_an_error_frame_that_does_not_parse_is_a_violation(pair: Pair) -> None:
    client, agent = pair
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            request = await agent.receive()
            await agent.send(MessageType.Error, request.trace_id, b"\0\0")

        with pytest.raises(errors.ProtocolViolationError, match="broken Error frame"):
            await client.ping()


async def test_a_request_without_a_reply_times_out(pair: Pair, autojump_clock: MockClock) -> None:
    client, _ = pair
    start = autojump_clock.current_time()
    with pytest.raises(errors.TimedOutError, match=r"PingRequest: no reply within 30 s \(trace id \S+\)") as caught:
        await client.ping()
    assert autojump_clock.current_time() - start == pytest.approx(30)
    assert isinstance(caught.value, TimeoutError)


async def test_a_slow_request_has_more_time(pair: Pair, autojump_clock: MockClock) -> None:
    client, _ = pair
    start = autojump_clock.current_time()
    with pytest.raises(errors.TimedOutError):
        await client.disk_trim()
    assert autojump_clock.current_time() - start == pytest.approx(300)


async def test_another_deadline_holds_for_every_kind_of_request(pair: Pair, autojump_clock: MockClock) -> None:
    client, _ = pair
    start = autojump_clock.current_time()
    for call in (client.within(2).ping, client.within(2).disk_trim):
        with pytest.raises(errors.TimedOutError):
            await call()
    assert autojump_clock.current_time() - start == pytest.approx(4)


async def test_an_infinite_deadline_is_none(pair: Pair, autojump_clock: MockClock) -> None:
    client, _ = pair
    start = autojump_clock.current_time()
    with trio.move_on_after(1_000_000):
        await client.within(math.inf).ping()
    assert autojump_clock.current_time() - start == pytest.approx(1_000_000)


async def test_a_late_reply_is_dropped_and_the_client_goes_on(pair: Pair, autojump_clock: MockClock) -> None:
    client, agent = pair
    start = autojump_clock.current_time()
    with pytest.raises(errors.TimedOutError):
        await client.within(1).ping("late")
    assert autojump_clock.current_time() - start == pytest.approx(1)
    late = await agent.receive()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            request = await agent.receive()
            await agent.reply(late, arcbox_v1.AgentPingResponse(message="late"))
            await agent.reply(request, PONG)

        assert await client.ping() == PONG


async def test_a_second_reply_to_one_request_is_dropped(pair: Pair) -> None:
    client, agent = pair
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            for _ in range(2):
                request = await agent.receive()
                await agent.reply(request, PONG)
                await agent.reply(request, PONG)

        assert await client.ping() == PONG
        assert await client.ping() == PONG


async def test_a_request_that_was_cancelled_already_is_not_sent(pair: Pair) -> None:
    client, agent = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.ping("never")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ping, "first")
        request = await agent.receive()
        await agent.reply(request, PONG)
    assert request.message == arcbox_v1.AgentPingRequest(message="first")


async def test_a_reply_and_a_cancellation_at_the_same_time_leave_the_client_usable(pair: Pair) -> None:
    client, agent = pair
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            request = await agent.receive()
            await agent.reply(request, PONG)
            nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ping)
        await agent.reply(await agent.receive(), PONG)


@pytest.mark.parametrize("arguments", [{"offset": -1}, {"length": -1}, {"offset": 1 << 64}])
async def test_an_argument_that_the_wire_has_no_room_for_is_a_value_error(
    pair: Pair, arguments: dict[str, int]
) -> None:
    client, _ = pair
    with pytest.raises(ValueError, match="range"):
        await client.mmap_read_file("/x", **arguments)


async def test_a_request_over_the_agents_limit_is_refused_before_it_costs_the_connection(pair: Pair) -> None:
    client, agent = pair
    with pytest.raises(ValueError, match="over the agent's limit"):
        await client.ping("x" * (16 * 1024 * 1024))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.ping)
        await agent.reply(await agent.receive(), PONG)


async def test_an_exception_of_the_body_leaves_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with memory_pair({}):
            raise KeyError("mine")


def test_every_public_method_says_what_it_does() -> None:
    for name, member in inspect.getmembers(AgentClient):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name
