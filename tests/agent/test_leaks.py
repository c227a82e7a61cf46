"""Nothing is left behind: no descriptor, no task, no memory, however many peers come and however they go.

Each test of a real agent does its thing once to warm up, and then again and again: what is made once is there by then,
and a leak adds to it every time.
"""

from __future__ import annotations

import resource
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trio
from attrs import define, field, frozen
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.addresses import UnixAddress
from arcbox_agent.notify import Notifier
from arcbox_agent.server import Server
from arcbox_agent.settings import Limits, Settings
from arcbox_client._agent_process import SETTINGS, running_agent
from arcbox_guest.testing import fake_guest
from arcbox_handlers import default_registry
from arcbox_protocol import ErrorReply, FrameDecoder, MessageType, arcbox_v1, encode_frame, encode_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = MessageType
MIB = 1024 * 1024

PING = encode_frame(T.PingRequest, "ping", b"")

_TRIES = 5
"""How often memory may grow by chance: how much is needed at the same time depends on who is scheduled when."""

LEAK = MIB // 2
"""Bytes that one more time may add. Nothing that Python keeps for a connection (a socket, a task and its frames, a
decoder) takes less than half a kilobyte: if one in a few of 1,000 connections left something behind, it would show."""

AT_ONCE = 1000
DESCRIPTORS = 2 * AT_ONCE + 200
"""In this process and in the agent, with room for what else is open."""


@pytest.fixture(autouse=True)
def enough_descriptors() -> Iterator[None]:
    """Let this process, and so the agents that it starts, have enough connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"the hard limit of open files, {hard}, does not allow {DESCRIPTORS}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


MOST_THREADS = 40
"""The 32 that may open files, which wait some seconds for more work, the main one, and some to spare."""


@frozen
class Vitals:
    """What a process holds."""

    descriptors: int
    threads: int
    memory: int
    """Resident, in bytes."""


@define
class Agent:
    """A real agent, from outside."""

    directory: Path
    process: psutil.Process
    idle: int = field(init=False)
    """Its descriptors when nobody is connected."""

    def vitals(self) -> Vitals:
        with self.process.oneshot():
            return Vitals(self.process.num_fds(), self.process.num_threads(), self.process.memory_info().rss)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(str(self.directory / "agent.sock"))
        return client

    def settle(self) -> Vitals:
        """Wait until the agent is done with whoever has gone."""
        eventually(lambda: self.process.num_fds() <= self.idle)
        return self.vitals()

    def repeat(self, what: Callable[[], None]) -> None:
        """Do something often enough to see that it leaves nothing behind."""
        self.settle()
        what()
        self.settle()
        what()
        first = self.settle()
        most = first.memory
        for _ in range(_TRIES):
            what()
            last = self.settle()
            assert last.threads <= MOST_THREADS
            if last.memory < most + LEAK:
                return
            most = last.memory
        pytest.fail(f"the agent's memory grew from {first.memory} to {most} bytes in {_TRIES} times")


def eventually(condition: Callable[[], object]) -> None:
    """Wait, not for ever, for what a process does on its own and the kernel has no event for."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "this did not come true within 20 s"
        time.sleep(0.005)


@contextmanager
def real_agent(settings: str = "") -> Iterator[Agent]:
    """An agent that has loaded all that it loads of its own accord: it logs from then on."""
    with (
        tempfile.TemporaryDirectory(prefix="arcbox-") as name,
        running_agent(Path(name), settings=SETTINGS + settings) as running,
    ):
        agent = Agent(Path(name), psutil.Process(running.pid))
        eventually(lambda: running.log)
        with agent.connect() as client:
            client.sendall(encode_frame(T.GetSystemInfoRequest, "", b""))
            assert receive_frame(client)[0] == T.GetSystemInfoResponse
            agent.idle = agent.vitals().descriptors - 1
        yield agent
        assert '"level": "error"' not in running.log


def receive_frame(client: socket.socket) -> tuple[int, bytes]:
    """One frame's type and payload."""
    decoder = FrameDecoder()
    while not (frames := decoder.feed(client.recv(4096))):
        pass
    return frames[0].type, frames[0].payload


def ping(client: socket.socket) -> None:
    client.sendall(PING)
    assert receive_frame(client)[0] == T.PingResponse


def test_a_thousand_connections_at_once_are_answered_and_leave_nothing() -> None:
    with real_agent() as agent:

        def crowd() -> None:
            with ExitStack() as stack:
                clients = [stack.enter_context(agent.connect()) for _ in range(AT_ONCE)]
                for client in clients:
                    client.sendall(PING)
                for client in clients:
                    assert receive_frame(client)[0] == T.PingResponse

        agent.repeat(crowd)


def test_ten_thousand_visits_one_after_the_other_leave_nothing() -> None:
    with real_agent() as agent:

        def visits() -> None:
            for _ in range(3334):
                with agent.connect() as client:
                    ping(client)

        agent.repeat(visits)


def test_three_hundred_half_sent_frames_leave_nothing() -> None:
    long = encode_header(T.PingRequest, "ping", 8 * MIB) + bytes(64 * 1024)

    with real_agent() as agent:

        def begin_and_go() -> None:
            for number in range(300):
                with agent.connect() as client:
                    if number % 3 == 0:
                        ping(client)
                    client.sendall(long if number % 10 == 0 else PING[: 1 + number % (len(PING) - 1)])

        agent.repeat(begin_and_go)


def test_three_hundred_half_sent_frames_at_once_leave_nothing() -> None:
    part = encode_header(T.PingRequest, "ping", 8 * MIB) + bytes(32 * 1024)

    with real_agent() as agent:

        def begin_and_go() -> None:
            with ExitStack() as stack:
                for _ in range(300):
                    stack.enter_context(agent.connect()).sendall(part)

        agent.repeat(begin_and_go)


def test_peers_that_go_in_the_middle_of_a_reply_leave_nothing() -> None:
    with real_agent() as agent:
        path = agent.directory / "big"
        with path.open("wb") as file:
            file.truncate(16 * MIB)
        request = arcbox_v1.MmapReadFileRequest(path=str(path), length=16 * MIB)
        frame = encode_frame(T.MmapReadFileRequest, "file", request.SerializeToString())

        def ask_and_go() -> None:
            for number in range(100):
                with agent.connect() as client:
                    client.sendall(frame)
                    if number % 4:  # else before the reply began
                        assert client.recv(100_000)

        agent.repeat(ask_and_go)
        assert not [mapping.path for mapping in agent.process.memory_maps() if mapping.path == str(path)]


def test_peers_that_go_with_requests_in_line_leave_nothing() -> None:
    with real_agent() as agent:

        def ask_much_and_go() -> None:
            for _ in range(100):
                with agent.connect() as client:
                    client.sendall(PING * 1000)

        agent.repeat(ask_much_and_go)


def test_peers_over_the_limit_leave_nothing() -> None:
    with real_agent("limits.max_connections = 5\n") as agent:

        def fill_up_and_overflow() -> None:
            with ExitStack() as stack:
                served = [stack.enter_context(agent.connect()) for _ in range(5)]
                for client in served:
                    ping(client)
                for client in [stack.enter_context(agent.connect()) for _ in range(300)]:
                    type_, payload = receive_frame(client)
                    assert (type_, ErrorReply.decode(payload).code) == (T.Error, 503)
                for client in served:
                    ping(client)

        agent.repeat(fill_up_and_overflow)


def test_a_thousand_idle_connections_cost_less_than_20_mib(record_property: Callable[[str, object], None]) -> None:
    with real_agent() as agent, ExitStack() as stack:
        for _ in range(10):
            ping(stack.enter_context(agent.connect()))
        before = agent.vitals().memory
        clients = [stack.enter_context(agent.connect()) for _ in range(AT_ONCE)]
        for client in clients:
            ping(client)
        cost = agent.vitals().memory - before
        record_property("bytes_per_idle_connection", cost // AT_ONCE)
        assert cost < 20 * MIB


async def test_no_task_outlives_its_connection(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        path = f"{directory}/agent.sock"
        settings, addresses = Settings(limits=Limits(max_connections=50)), [UnixAddress(path)]
        server = Server(settings, fake_guest(), default_registry(), addresses, notifier=Notifier(None))
        big = tmp_path / "big"
        big.write_bytes(bytes(4 * MIB))
        request = arcbox_v1.MmapReadFileRequest(path=str(big), length=4 * MIB)
        farewells = [
            b"",
            PING,
            PING[:7],
            PING * 1000,
            b"\0\0\0\0",
            encode_frame(T.MmapReadFileRequest, "file", request.SerializeToString()),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            await server.ready.wait()
            await wait_all_tasks_blocked()
            before = trio.lowlevel.current_statistics().tasks_living
            left = []
            for _ in range(4):
                streams = [await trio.open_unix_socket(path) for _ in range(70)]
                for stream, farewell in zip(streams, cycle(farewells), strict=False):
                    with suppress(trio.BrokenResourceError):  # it was over the limit
                        await stream.send_all(farewell)
                await wait_all_tasks_blocked()
                assert trio.lowlevel.current_statistics().tasks_living > before
                for stream in streams:
                    await stream.aclose()
                await wait_all_tasks_blocked()
                left.append(trio.lowlevel.current_statistics().tasks_living)
            assert left[-1] <= max(left[:-1])  # services may start tasks as well, and not in each round
            nursery.cancel_scope.cancel()
