"""Create, Stop and Remove: what is done, what is refused, what is answered."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes.model import Action, BindMount, NetworkMode, ResourceLimits, Spec, State
from arcbox_handlers.sandboxes import SandboxCreate
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.handlers.sandboxes.conftest import Rig

CREATE, STOP, REMOVE = (
    MessageType.SandboxCreateRequest,
    MessageType.SandboxStopRequest,
    MessageType.SandboxRemoveRequest,
)
INSPECT = MessageType.SandboxInspectRequest
FULL_ID = "a" * 64


async def test_create_asks_for_all_that_was_asked_for_and_answers_at_once(rig: Rig) -> None:
    request = sandbox_v1.CreateSandboxRequest(
        id="box-1",
        labels={"team": "a"},
        rootfs="/rootfs",
        limits=sandbox_v1.ResourceLimits(vcpus=2, memory_mib=256),
        cmd=["sleep", "", "5"],
        env={"A": "b=c"},
        working_dir="/tmp",  # noqa: S108  a name in a sandbox that does not exist
        user="nobody",
        mounts=[sandbox_v1.Mount(source="/tmp", target="/mnt/data", readonly=True)],  # noqa: S108  the same
        network=sandbox_v1.NetworkSpec(mode="none"),
        ttl_seconds=90,
    )
    rig.sandboxes.driver.faults["create"] = trio.Event()
    frame = await rig.ask(CREATE, request)
    assert (frame.type, frame.trace_id) == (MessageType.SandboxCreateResponse, "t")
    assert sandbox_v1.CreateSandboxResponse.FromString(frame.payload) == sandbox_v1.CreateSandboxResponse(
        id="box-1", state="starting"
    )
    assert rig.sandboxes.manager.get("box-1").spec == Spec(
        id="box-1",
        rootfs="/rootfs",
        labels={"team": "a"},
        limits=ResourceLimits(vcpus=2, memory_mib=256),
        cmd=("sleep", "", "5"),
        env={"A": "b=c"},
        working_dir="/tmp",  # noqa: S108  the same
        user="nobody",
        mounts=(BindMount(source="/tmp", target="/mnt/data", readonly=True),),  # noqa: S108  the same
        network=NetworkMode.NONE,
        ttl=90.0,
    )


async def test_create_without_an_id_makes_up_a_uuid(rig: Rig) -> None:
    frame = await rig.ask(CREATE)
    sandbox_id = sandbox_v1.CreateSandboxResponse.FromString(frame.payload).id
    assert str(uuid.UUID(sandbox_id)) == sandbox_id


@pytest.mark.parametrize("sandbox_id", ["a", "0", "A_b.c-1", FULL_ID])
async def test_ids_of_letters_digits_and_three_marks_are_taken(rig: Rig, sandbox_id: str) -> None:
    frame = await rig.ask(CREATE, sandbox_v1.CreateSandboxRequest(id=sandbox_id))
    assert sandbox_v1.CreateSandboxResponse.FromString(frame.payload).id == sandbox_id


@pytest.mark.parametrize(
    "sandbox_id", ["-a", ".", "..", "_a", "a/b", "../a", "a b", "a\n", "a\0", "ä", "१", FULL_ID + "a", "a" * 100_000]
)
async def test_what_is_no_id_is_error_400(rig: Rig, sandbox_id: str) -> None:
    refusal = await rig.refusal(CREATE, sandbox_v1.CreateSandboxRequest(id=sandbox_id))
    assert refusal.code == 400
    assert "is no sandbox id" in refusal.message
    assert len(refusal.message) < 300


async def test_an_id_in_use_is_error_409(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    assert (await rig.refusal(CREATE, sandbox_v1.CreateSandboxRequest(id="box"))).code == 409


@pytest.mark.parametrize(
    ("fields", "code", "word"),
    [
        ({"network": sandbox_v1.NetworkSpec(mode="tap")}, 501, "network.enabled"),
        ({"image": "alpine:3"}, 501, "images"),
        ({"kernel": "/vmlinux"}, 501, "kernel"),
        ({"boot_args": "quiet"}, 501, "boot_args"),
        ({"ssh_public_key": "ssh-ed25519 AAAA"}, 501, "ssh_public_key"),
        ({"network": sandbox_v1.NetworkSpec(mode="bridge")}, 400, "'bridge'"),
        ({"rootfs": "images/root"}, 400, "rootfs"),
        ({"rootfs": "/a\0b"}, 400, "rootfs"),
        ({"cmd": [""]}, 400, "cmd"),
        ({"cmd": ["a", "b\0c"]}, 400, "cmd"),
        ({"env": {"": "x"}}, 400, "environment"),
        ({"env": {"A=B": "x"}}, 400, "A=B"),
        ({"env": {"A": "x\0y"}}, 400, "env"),
        ({"env": {"A\0": "x"}}, 400, "env"),
        ({"working_dir": "srv"}, 400, "working_dir"),
        ({"user": "a\0b"}, 400, "user"),
        ({"limits": sandbox_v1.ResourceLimits(vcpus=8193)}, 400, "vcpus"),
        ({"limits": sandbox_v1.ResourceLimits(memory_mib=2**43)}, 400, "memory_mib"),
        ({"mounts": [sandbox_v1.Mount(source="data", target="/data")]}, 400, "source"),
        ({"mounts": [sandbox_v1.Mount(source="/data", target="")]}, 400, "target"),
    ],
)
async def test_what_can_not_be_is_refused_and_nothing_is_begun(
    rig: Rig, fields: dict[str, Any], code: int, word: str
) -> None:
    refusal = await rig.refusal(CREATE, sandbox_v1.CreateSandboxRequest(id="box", **fields))
    assert refusal.code == code
    assert word in refusal.message
    assert rig.sandboxes.manager.list() == []


@pytest.mark.parametrize("mode", ["", "none"])
async def test_no_network_is_what_one_gets_for_now(rig: Rig, mode: str) -> None:
    request = sandbox_v1.CreateSandboxRequest(id="box", network=sandbox_v1.NetworkSpec(mode=mode))
    frame = await rig.ask(CREATE, request)
    assert sandbox_v1.CreateSandboxResponse.FromString(frame.payload).ip_address == ""


async def test_a_creation_that_was_acknowledged_outlives_its_connection(rig: Rig) -> None:
    go_on = rig.sandboxes.driver.faults["create"] = trio.Event()
    with rig.sandboxes.events.subscribe("box", Action.READY) as ready:
        await rig.ask(CREATE, sandbox_v1.CreateSandboxRequest(id="box"))
        rig.hang_up()
        await wait_all_tasks_blocked()
        go_on.set()
        await anext(ready)


@pytest.mark.parametrize(("timeout_seconds", "grace"), [(0, 30.0), (1, 1.0), (40, 40.0)])
async def test_what_does_not_end_is_killed_after_the_timeout_or_30_seconds(
    rig: Rig, autojump_clock: MockClock, timeout_seconds: int, grace: float
) -> None:
    script = "trap '' TERM; echo trapped; while :; do sleep 1000; done"
    await rig.sandboxes.create("box", until=Action.RUNNING, cmd=("sh", "-c", script))
    begun = trio.current_time()
    frame = await rig.ask(STOP, sandbox_v1.StopSandboxRequest(id="box", timeout_seconds=timeout_seconds))
    assert (frame.type, frame.payload) == (MessageType.SandboxStopResponse, b"")
    assert trio.current_time() - begun == pytest.approx(grace)
    assert rig.sandboxes.manager.get("box").state is State.STOPPED


async def test_remove_takes_force_while_something_runs(rig: Rig) -> None:
    await rig.sandboxes.create("box", until=Action.RUNNING, cmd=("sleep", "9"))
    assert (await rig.refusal(REMOVE, sandbox_v1.RemoveSandboxRequest(id="box"))).code == 409
    frame = await rig.ask(REMOVE, sandbox_v1.RemoveSandboxRequest(id="box", force=True))
    assert (frame.type, frame.payload) == (MessageType.SandboxRemoveResponse, b"")
    assert rig.sandboxes.driver.sandboxes == {}


async def test_remove_needs_no_force_when_nothing_runs(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    assert (await rig.ask(REMOVE, sandbox_v1.RemoveSandboxRequest(id="box"))).type == MessageType.SandboxRemoveResponse


@pytest.mark.parametrize(
    ("slow", "method", "request_"),
    [
        (STOP, "stop", sandbox_v1.StopSandboxRequest(id="box")),
        (REMOVE, "destroy", sandbox_v1.RemoveSandboxRequest(id="box")),
    ],
)
async def test_later_requests_overtake_a_stop_and_a_removal(
    rig: Rig, slow: MessageType, method: str, request_: sandbox_v1.StopSandboxRequest | sandbox_v1.RemoveSandboxRequest
) -> None:
    await rig.sandboxes.create("box")
    go_on = rig.sandboxes.driver.faults[method] = trio.Event()
    await rig.peer.send(slow, request_, trace_id="slow")
    assert (await rig.ask(MessageType.PingRequest, trace_id="ping")).trace_id == "ping"
    go_on.set()
    assert (await rig.peer.receive()).trace_id == "slow"


def test_create_keeps_its_place_in_line() -> None:
    assert not SandboxCreate.slow


async def test_what_the_driver_can_not_do_is_error_500_with_its_words(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    rig.sandboxes.driver.faults["stop"] = GuestError("crun kill: no such container")
    refusal = await rig.refusal(STOP, sandbox_v1.StopSandboxRequest(id="box"))
    assert (refusal.code, refusal.message) == (500, "crun kill: no such container")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (STOP, sandbox_v1.StopSandboxRequest(id="../etc")),
        (REMOVE, sandbox_v1.RemoveSandboxRequest(id="no")),
        (INSPECT, sandbox_v1.InspectSandboxRequest(id="no")),
        (INSPECT, sandbox_v1.InspectSandboxRequest()),
    ],
)
async def test_a_sandbox_that_is_not_there_is_error_404(rig: Rig, kind: MessageType, message: Any) -> None:  # noqa: ANN401  one of three
    assert (await rig.refusal(kind, message)).code == 404


async def test_a_request_that_does_not_parse_is_error_400_and_the_connection_goes_on(rig: Rig) -> None:
    assert (await rig.refusal(CREATE, b"\xff")).code == 400
    assert (await rig.ask(MessageType.PingRequest)).type == MessageType.PingResponse
