"""OutputStream for a peer that reads slowly, or not at all, or goes away meanwhile: over a real socket."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.testing import FakeProcess
    from tests.handlers.sandboxes.conftest import SocketRig

PIECE = 65536


async def start(rig: SocketRig, trace_id: str = "t") -> FakeProcess:
    if not rig.sandboxes.manager.list():
        await rig.sandboxes.create("box")
    program = rig.sandboxes.script("x")
    await rig.send(MessageType.SandboxExecRequest, sandbox_v1.ExecRequest(id="box", cmd=["x"]), trace_id)
    return await program.process()


async def output(rig: SocketRig) -> tuple[bytes, int]:
    data = bytearray()
    while True:
        frame = await rig.receive()
        assert frame.type == MessageType.SandboxExecOutput
        reply = sandbox_v1.ExecOutput.FromString(frame.payload)
        if reply.done:
            return bytes(data), reply.exit_code
        data += reply.data


async def test_a_process_waits_for_a_peer_that_does_not_read(socket_rig: SocketRig) -> None:
    process = await start(socket_rig)
    process.write(bytes(1000 * PIECE))
    await wait_all_tasks_blocked()
    assert 0 < 1000 * PIECE - process.stdout.unread() < 4 * 1024 * 1024
    process.exit(9)
    assert await output(socket_rig) == (bytes(1000 * PIECE), 9)


@pytest.mark.parametrize("leave_behind", [False, True])
async def test_all_that_waits_in_the_pipe_arrives_however_late_the_peer_reads(
    socket_rig: SocketRig, autojump_clock: MockClock, *, leave_behind: bool
) -> None:
    process = await start(socket_rig)
    data = b"".join(bytes([number]) * 70_000 for number in range(200))
    process.write(data)
    if leave_behind:
        process.leave_behind(holds_output=True)
    process.exit(0)
    await trio.sleep(3600)
    assert await output(socket_rig) == (data, 0)


async def test_the_next_process_runs_on_the_connection_that_a_daemon_was_cut_off_from(
    socket_rig: SocketRig, autojump_clock: MockClock
) -> None:
    for trace_id in ("1", "2"):
        process = await start(socket_rig, trace_id)
        process.write(bytes(100 * PIECE))
        process.leave_behind(holds_output=True)
        process.exit(0)
        await trio.sleep(60)
        assert await output(socket_rig) == (bytes(100 * PIECE), 0)


async def test_a_peer_that_goes_away_in_the_middle_of_output_ends_the_process(
    socket_rig: SocketRig, caplog: pytest.LogCaptureFixture
) -> None:
    process = await start(socket_rig)
    process.write(bytes(1000 * PIECE))
    await wait_all_tasks_blocked()
    await socket_rig.peer.aclose()
    assert await process.wait() == 137
    await wait_all_tasks_blocked()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_slow_peer_hears_of_other_requests_meanwhile(socket_rig: SocketRig) -> None:
    process = await start(socket_rig)
    process.write(bytes(1000 * PIECE))
    await wait_all_tasks_blocked()
    await socket_rig.send(MessageType.SandboxInspectRequest, sandbox_v1.InspectSandboxRequest(id="box"), "inspect")
    before = 0
    while (frame := await socket_rig.receive()).trace_id != "inspect":
        before += len(frame.payload)
    assert frame.type == MessageType.SandboxInspectResponse
    assert before < 8 * 1024 * 1024
