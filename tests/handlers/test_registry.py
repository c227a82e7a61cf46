"""Which commands there are, and what is said of requests without one."""

from __future__ import annotations

import pytest

from arcbox_guest import errors as guest_errors
from arcbox_handlers import CommandError, Registry, UnaryCommand, default_registry, error_reply
from arcbox_handlers.disks import DiskTrim
from arcbox_handlers.system import Ping
from arcbox_protocol import EXCHANGES, LATER_REQUESTS, MessageType
from arcbox_protocol.errors import InvalidPayloadError

LIFECYCLE = {MessageType.PauseSandboxRequest, MessageType.ResumeSandboxRequest, MessageType.SetLifecycleRequest}
EXECUTIONS = {kind for kind in MessageType if 0x0060 <= kind <= 0x0068}
NOW_SUPPORTED = {
    MessageType.PingRequest,
    MessageType.GetSystemInfoRequest,
    MessageType.MmapReadFileRequest,
    MessageType.DiskTrimRequest,
    MessageType.ShutdownRequest,
    MessageType.EnsureRuntimeRequest,
    MessageType.RuntimeStatusRequest,
    MessageType.WatchReadinessRequest,
    MessageType.WatchPortBindingsRequest,
    MessageType.KubernetesStartRequest,
    MessageType.KubernetesStopRequest,
    MessageType.KubernetesDeleteRequest,
    MessageType.KubernetesStatusRequest,
    MessageType.KubernetesKubeconfigRequest,
    MessageType.SandboxCreateRequest,
    MessageType.SandboxStopRequest,
    MessageType.SandboxRemoveRequest,
    MessageType.SandboxInspectRequest,
    MessageType.SandboxListRequest,
    MessageType.SandboxRunRequest,
    MessageType.SandboxExecRequest,
    MessageType.SandboxEventsRequest,
    MessageType.SandboxFileReadRequest,
    MessageType.SandboxFileWriteRequest,
    MessageType.StatFileRequest,
    MessageType.ListDirRequest,
    MessageType.MakeDirRequest,
    MessageType.RemoveEntryRequest,
    MessageType.MoveEntryRequest,
    MessageType.WatchDirRequest,
    *LIFECYCLE,
    MessageType.SandboxPortForwardRequest,
    MessageType.SandboxPortForwardRemoveRequest,
    MessageType.SandboxCheckpointRequest,
    MessageType.SandboxRestoreRequest,
    MessageType.SandboxListSnapshotsRequest,
    MessageType.SandboxDeleteSnapshotRequest,
    MessageType.WatchStatsRequest,
    MessageType.WatchMemoryPressureRequest,
    MessageType.MachineExecRequest,
    MessageType.KillAgentRequest,
    *EXECUTIONS,
}
QUICK_EXECUTIONS = {
    MessageType.AttachExecutionRequest,  # a stream
    MessageType.GetStdinStatusRequest,
    MessageType.ResizeExecutionTtyRequest,
    MessageType.ListExecutionsRequest,
}
SLOW = {
    MessageType.KubernetesStartRequest,
    MessageType.KubernetesStopRequest,
    MessageType.KubernetesDeleteRequest,
    MessageType.DiskTrimRequest,
    MessageType.SandboxStopRequest,
    MessageType.SandboxRemoveRequest,
    MessageType.StatFileRequest,
    MessageType.ListDirRequest,
    MessageType.MakeDirRequest,
    MessageType.RemoveEntryRequest,
    MessageType.MoveEntryRequest,
    MessageType.SandboxCheckpointRequest,
    MessageType.SandboxRestoreRequest,
    *LIFECYCLE,
    *(EXECUTIONS - QUICK_EXECUTIONS),
}
LATER = {
    **{kind: exchange.request.name for kind, exchange in EXCHANGES.items() if kind not in NOW_SUPPORTED},
    **LATER_REQUESTS,
}


def test_the_agent_has_a_command_for_what_it_supports() -> None:
    assert set(default_registry().routes) == NOW_SUPPORTED


def test_only_what_takes_long_may_be_overtaken() -> None:
    routes = default_registry().routes.values()
    slow = {r.exchange.request for r in routes if issubclass(r.command, UnaryCommand) and r.command.slow}
    assert slow == SLOW


@pytest.mark.parametrize("kind", LATER, ids=LATER.get)
def test_a_request_of_a_later_issue_is_error_501_by_its_name(kind: int) -> None:
    reply = error_reply(default_registry().why_unroutable(kind))
    assert reply is not None
    assert reply.code == 501
    assert LATER[kind] in reply.message


@pytest.mark.parametrize("kind", [0x0999, 0xABCD_EF01, MessageType.Empty, MessageType.PingResponse, MessageType.Error])
def test_a_type_that_is_no_request_is_error_400(kind: int) -> None:
    reply = error_reply(default_registry().why_unroutable(kind))
    assert reply is not None
    assert reply.code == 400
    assert f"0x{kind:04X}" in reply.message


def test_a_payload_that_is_not_the_message_is_error_400_invalid_request() -> None:
    route = default_registry().routes[MessageType.PingRequest]
    with pytest.raises(InvalidPayloadError) as failure:
        route.parse(b"\x0a\xff")
    reply = error_reply(failure.value)
    assert reply is not None
    assert reply.code == 400
    assert reply.message.startswith("invalid request: ")


def test_a_payload_that_is_ignored_may_be_anything() -> None:
    assert default_registry().routes[MessageType.GetSystemInfoRequest].parse(b"\xff\xff") is None


def test_two_commands_for_one_type_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="Ping: PingRequest has a command already"):
        Registry([Ping, DiskTrim, Ping])


@pytest.mark.parametrize("kind", [MessageType.PingResponse, MessageType.SandboxExecInput])
def test_a_command_for_what_has_no_reply_is_a_mistake(kind: MessageType) -> None:
    wrong = type("Wrong", (Ping,), {"handles": kind})
    with pytest.raises(ValueError, match=r"is not a request|is input for a stream"):
        Registry([wrong])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (guest_errors.InvalidArgumentError("why"), 400),
        (guest_errors.NotFoundError("why"), 404),
        (guest_errors.ConflictError("why"), 409),
        (guest_errors.PreconditionError("why"), 412),
        (guest_errors.TooLargeError("why"), 413),
        (guest_errors.OutOfRangeError("why"), 416),
        (guest_errors.PausedError("why"), 423),
        (guest_errors.GuestError("why"), 500),
        (guest_errors.NotSupportedError("why"), 501),
        (guest_errors.UnavailableError("why"), 503),
        (guest_errors.TimedOutError("why"), 504),
        (type("NarrowerError", (guest_errors.NotFoundError,), {})("why"), 404),
        (CommandError(13, "why"), 13),
    ],
)
def test_each_error_has_its_code_and_keeps_its_words(error: Exception, code: int) -> None:
    reply = error_reply(error)
    assert reply is not None
    assert (reply.code, reply.message) == (code, "why")


def test_the_words_of_an_unforeseen_error_are_not_for_the_peer() -> None:
    assert error_reply(RuntimeError("secret")) is None
