"""What later hosts ask of the machine: statistics, memory pressure, processes on it, and the end of the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field

from arcbox_agent.testing import memory_connection
from arcbox_guest.kill_switch import KillSwitch
from arcbox_guest.machine_exec import MachineExec
from arcbox_guest.statistics import MachineSample, MachineStatistics
from arcbox_guest.testing import fake_guest
from arcbox_protocol import ErrorReply, arcbox_v1
from arcbox_protocol import MessageType as T

if TYPE_CHECKING:
    from trio.testing import MockClock

    from arcbox_agent.testing import MemoryPeer


@define(eq=False)
class FakeStatistics(MachineStatistics):
    """Samples that count themselves, and take as long as a test says."""

    takes: float = 0.0
    taken: int = field(init=False, default=0)

    async def sample(self) -> MachineSample:
        await trio.sleep(self.takes)
        self.taken += 1
        return MachineSample(
            monotonic_ms=self.taken,
            cpu_busy_ticks=1,
            cpu_total_ticks=2,
            online_cpus=3,
            loadavg1=0.5,
            memory_total_bytes=4,
            memory_available_bytes=5,
            memory_psi_full_avg10=-1.0,
            disk_read_bytes=6,
            disk_written_bytes=7,
            net_rx_bytes=8,
            net_tx_bytes=9,
        )


async def samples(peer: MemoryPeer, request: arcbox_v1.WatchStatsRequest) -> list[tuple[float, int]]:
    """The samples of a whole watch: when each came, in seconds from the first, and its number."""
    await peer.send(T.WatchStatsRequest, request, trace_id="stats")
    begun, taken = trio.current_time(), []
    with trio.move_on_after(1000):
        while True:
            frame = await peer.receive()
            assert (frame.type, frame.trace_id) == (T.MachineStats, "stats")
            sample = arcbox_v1.MachineStats.FromString(frame.payload)
            taken.append((round(trio.current_time() - begun, 3), sample.monotonic_ms))
    return taken


@pytest.mark.parametrize(
    ("request_", "times"),
    [
        (arcbox_v1.WatchStatsRequest(timeout_ms=3500), [0, 1, 2, 3]),
        (arcbox_v1.WatchStatsRequest(timeout_ms=700, interval_ms=1), [0, 0.2, 0.4, 0.6]),
        (arcbox_v1.WatchStatsRequest(interval_ms=100_000), [0, 100, 200]),
    ],
)
async def test_samples_come_at_their_interval_the_first_at_once_until_the_time_is_up(
    request_: arcbox_v1.WatchStatsRequest, times: list[float], autojump_clock: MockClock
) -> None:
    async with memory_connection(guest=fake_guest(statistics=FakeStatistics())) as peer:
        assert await samples(peer, request_) == list(zip(times, range(1, 100), strict=False))
        await peer.send(T.PingRequest)
        assert (await peer.receive()).type == T.PingResponse


async def test_samples_that_take_long_are_not_made_up_for(autojump_clock: MockClock) -> None:
    async with memory_connection(guest=fake_guest(statistics=FakeStatistics(takes=2.5))) as peer:
        taken = await samples(peer, arcbox_v1.WatchStatsRequest(timeout_ms=7000))
        assert taken == [(2.5, 1), (5.0, 2), (7.5, 3)]


async def test_this_machine_s_statistics_and_memory_are_told() -> None:
    async with memory_connection() as peer:
        await peer.send(T.WatchStatsRequest, arcbox_v1.WatchStatsRequest(timeout_ms=1))
        stats = arcbox_v1.MachineStats.FromString((await peer.receive()).payload)
        assert 0 < stats.memory_available_bytes < stats.memory_total_bytes
        await peer.send(T.WatchMemoryPressureRequest, arcbox_v1.WatchMemoryPressureRequest(timeout_ms=1))
        events = [arcbox_v1.MemoryPressureEvent.FromString((await peer.receive()).payload) for _ in range(2)]
        assert [event.reason for event in events] == [
            arcbox_v1.MemoryPressureEvent.KEEPALIVE,
            arcbox_v1.MemoryPressureEvent.WINDOW_ELAPSED,
        ]
        assert all(0 < event.available_bytes < stats.memory_total_bytes for event in events)


async def outputs(peer: MemoryPeer) -> tuple[dict[str, bytes], arcbox_v1.MachineExecOutput]:
    """What a process wrote, by stream, and its last frame."""
    said: dict[str, bytes] = {}
    while True:
        output = arcbox_v1.MachineExecOutput.FromString((await peer.receive()).payload)
        if output.done:
            return said, output
        said[output.stream] = said.get(output.stream, b"") + output.data


async def test_a_process_on_the_machine_has_input_output_and_an_exit_code() -> None:
    request = arcbox_v1.MachineExecRequest(cmd=["sh", "-c", "cat; echo err >&2; exit 7"], attach_stdin=True)
    async with memory_connection(guest=fake_guest(machine_exec=MachineExec(enabled=True))) as peer:
        with trio.fail_after(30):
            await peer.send(T.MachineExecRequest, request, trace_id="x")
            await peer.send(T.MachineExecInput, b"in", trace_id="x")
            await peer.send(T.MachineExecInput, trace_id="x")
            said, last = await outputs(peer)
    assert said == {"stdout": b"in", "stderr": b"err\n"}
    assert (last.stream, last.exit_code, last.exit_signal) == ("exit", 7, "")


@pytest.mark.parametrize(
    ("cmd", "exit_code", "exit_signal", "stderr"),
    [
        (["sh", "-c", "cat"], 0, "", b""),  # its stdin was not attached: it is empty
        (["sh", "-c", "kill -KILL $$"], -1, "KILL", b""),
        (["sh", "-c", "exit 137"], 137, "", b""),
        (["no-such-command"], 127, "", b"no-such-command: command not found\n"),
    ],
)
async def test_the_last_frame_says_how_a_process_ended(
    cmd: list[str], exit_code: int, exit_signal: str, stderr: bytes
) -> None:
    async with memory_connection(guest=fake_guest(machine_exec=MachineExec(enabled=True))) as peer:
        with trio.fail_after(30):
            await peer.send(T.MachineExecRequest, arcbox_v1.MachineExecRequest(cmd=cmd))
            said, last = await outputs(peer)
    assert (last.exit_code, last.exit_signal, said.get("stderr", b"")) == (exit_code, exit_signal, stderr)


async def test_a_terminal_on_the_machine_can_be_resized() -> None:
    request = arcbox_v1.MachineExecRequest(cmd=["sh", "-c", "echo up; read x; stty size"], tty=True)
    async with memory_connection(guest=fake_guest(machine_exec=MachineExec(enabled=True))) as peer:
        with trio.fail_after(30):
            await peer.send(T.MachineExecRequest, request, trace_id="x")
            await peer.receive()
            await peer.send(T.MachineExecResize, arcbox_v1.TerminalSize(width=50, height=20), trace_id="x")
            await peer.send(T.MachineExecInput, b"\r", trace_id="x")
            said, _ = await outputs(peer)
    assert b"20 50" in said["stdout"]


async def test_when_the_host_goes_the_process_is_killed() -> None:
    async with memory_connection(guest=fake_guest(machine_exec=MachineExec(enabled=True))) as peer:
        with trio.fail_after(30):
            await peer.send(T.MachineExecRequest, arcbox_v1.MachineExecRequest(cmd=["sh", "-c", "echo $$; sleep 1000"]))
            pid = int(arcbox_v1.MachineExecOutput.FromString((await peer.receive()).payload).data)
            os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_what_the_settings_do_not_allow_is_501() -> None:
    async with memory_connection() as peer:
        for request in (T.MachineExecRequest, T.KillAgentRequest):
            await peer.send(request, arcbox_v1.MachineExecRequest(cmd=["true"]))
            assert ErrorReply.decode((await peer.receive()).payload).code == 501


async def test_killing_the_agent_is_acknowledged_before_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = trio.Event()
    monkeypatch.setattr(KillSwitch, "press", lambda _self: pressed.set())
    async with memory_connection(guest=fake_guest(kill_switch=KillSwitch(enabled=True))) as peer:
        await peer.send(T.KillAgentRequest, trace_id="x")
        frame = await peer.receive()
        assert (frame.type, frame.trace_id, frame.payload) == (T.KillAgentResponse, "x", b"")
        await pressed.wait()


def test_a_killed_agent_ends_with_status_1_whatever_it_does() -> None:
    code = (
        "import time; from arcbox_guest.kill_switch import KillSwitch; KillSwitch(enabled=True).press();"
        "time.sleep(30); print('still there')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=30)  # noqa: S603  ours
    assert (ended.returncode, ended.stdout) == (1, b"")
