"""The agent's life: start, listen, serve, stop. In this process; `test_agent_process.py` has it as one of its own."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked

from arcbox_agent import server as server_module
from arcbox_agent import vsock_cid
from arcbox_agent.addresses import UnixAddress, VsockAddress
from arcbox_agent.listeners import Peer, SocketListener, listen, listen_patiently
from arcbox_agent.notify import Notifier
from arcbox_agent.server import Server
from arcbox_agent.settings import Disk as DiskSettings
from arcbox_agent.settings import Limits, Settings
from arcbox_agent.settings import Vsock as VsockSettings
from arcbox_guest.disks import Disks, TrimResult
from arcbox_guest.power import Power
from arcbox_guest.testing import FakePowerSwitch, fake_guest
from arcbox_handlers import default_registry
from arcbox_protocol import ErrorReply, Frame, FrameDecoder, MessageType, encode_frame, sandbox_v1

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from trio.testing import MockClock

    from arcbox_agent.addresses import Address
    from arcbox_guest import Guest
    from tests.agent.conftest import Stage
    from tests.agent.service_manager import Manager

T = MessageType


# In this process


@define
class Host:
    """The host's end of a connection."""

    stream: trio.SocketStream
    _decoder: FrameDecoder = field(init=False, factory=FrameDecoder)
    _frames: list[Frame] = field(init=False, factory=list)

    async def send(self, message_type: int, payload: bytes = b"", trace_id: str = "") -> None:
        await self.stream.send_all(encode_frame(message_type, trace_id, payload))

    async def hold(self, name: str) -> None:
        """Ask for something that takes until the stage's gate of that name opens."""
        await self.send(T.SandboxInspectRequest, sandbox_v1.InspectSandboxRequest(id=name).SerializeToString(), name)

    async def receive(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        while not self._frames:
            data = await self.stream.receive_some()
            if not data:
                assert not self._decoder.has_partial
                return None
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    async def is_answered(self) -> bool:
        await self.send(T.PingRequest, trace_id="ping")
        frame = await self.receive()
        return frame is not None and (frame.type, frame.trace_id) == (T.PingResponse, "ping")

    async def is_sent_away(self) -> bool:
        frame = await self.receive()
        assert frame is not None
        error = ErrorReply.decode(frame.payload)
        return (frame.type, frame.trace_id, error.code) == (T.Error, "", 503) and await self.receive() is None


@define
class Running:
    """A server that runs in this process."""

    path: Path
    server: Server
    ended: trio.Event = field(init=False, factory=trio.Event)
    _hosts: list[Host] = field(init=False, factory=list)

    async def run(self) -> None:
        await self.server.run()
        self.ended.set()

    async def connect(self, path: Path | None = None) -> Host:
        self._hosts.append(Host(await trio.open_unix_socket(path or self.path)))
        return self._hosts[-1]

    def close(self) -> None:
        for host in self._hosts:
            host.stream.socket.close()

    async def signal(self, number: int = signal.SIGTERM) -> None:
        """Send this process a signal, and let the server act on it."""
        os.kill(os.getpid(), number)
        await wait_all_tasks_blocked()


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "agent.sock"


def server_of(
    *paths: Path,
    stage: Stage | None = None,
    guest: Guest | None = None,
    passed: Sequence[SocketListener] = (),
    notifier: Notifier | None = None,
    **settings: Any,  # noqa: ANN401  what attrs takes
) -> Server:
    """A server on these Unix sockets, with fakes for what is not given; nobody is notified by default."""
    return Server(
        Settings(**settings),
        guest or fake_guest(),
        stage.registry if stage else default_registry(),
        [UnixAddress(str(path)) for path in paths],
        passed,
        notifier=notifier or Notifier(None),
    )


@asynccontextmanager
async def running(server: Server, *, ready: bool = True) -> AsyncIterator[Running]:
    """Run a server, by default until it is ready; it is cancelled at the end, if it has not ended by then."""
    (first, *_) = server._addresses
    agent = Running(Path(str(first).removeprefix("unix:")), server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        if ready:
            await server.ready.wait()
            await wait_all_tasks_blocked()  # it is ready with the first address
        try:
            yield agent
        finally:
            agent.close()
            nursery.cancel_scope.cancel()


# Starting


async def test_systemd_is_told_that_the_agent_is_ready_with_the_first_address_and_of_each_that_follows(
    directory: Path, manager: Manager, autojump_clock: MockClock
) -> None:
    later, first = directory / "later" / "agent.sock", directory / "agent.sock"
    async with running(server_of(later, first, notifier=Notifier(manager.path))) as agent:
        assert await (await agent.connect(first)).is_answered()
        assert manager.heard() == ["READY=1", f"STATUS=listening on unix:{first}; not yet on unix:{later}"]
        (directory / "later").mkdir()
        await trio.sleep(100)
        assert manager.heard() == [f"STATUS=listening on unix:{later}, unix:{first}"]
        assert await (await agent.connect(later)).is_answered()


async def test_every_address_is_served(directory: Path) -> None:
    paths = [directory / f"{number}.sock" for number in range(3)]
    async with running(server_of(*paths)) as agent:
        await wait_all_tasks_blocked()
        for path in paths:
            assert await (await agent.connect(path)).is_answered()


@pytest.mark.parametrize("reachable", [True, False])
def test_a_vsock_listener_that_no_host_can_reach_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, reachable: bool
) -> None:
    monkeypatch.setattr(vsock_cid, "is_reachable", lambda: reachable)
    server_of(path)._note_listening(VsockAddress(1024))
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [vars(record)["reason"] for record in warnings] == (
        [] if reachable else ["this guest has no CID; is the module vmw_vsock_virtio_transport loaded?"]
    )


async def test_a_passed_socket_is_served_beside_the_others(directory: Path, path: Path) -> None:
    passed = listen(UnixAddress(str(directory / "passed.sock")))
    async with running(server_of(path, passed=[passed])) as agent:
        await wait_all_tasks_blocked()  # it is ready with the first of both
        assert await (await agent.connect()).is_answered()
        assert await (await agent.connect(directory / "passed.sock")).is_answered()


async def test_the_watchdog_is_fed_from_the_event_loop(path: Path, manager: Manager, autojump_clock: MockClock) -> None:
    async with running(server_of(path, notifier=Notifier(manager.path, watchdog_interval=5.0))):
        await wait_all_tasks_blocked()
        manager.heard()
        await trio.sleep(51)
        assert manager.heard() == ["WATCHDOG=1"] * 10


# Serving


async def test_a_connection_over_the_limit_is_sent_away_and_when_one_ends_the_next_is_served(
    path: Path,
) -> None:
    async with running(server_of(path, limits=Limits(max_connections=2))) as agent:
        hosts = [await agent.connect() for _ in range(2)]
        assert [await host.is_answered() for host in hosts] == [True, True]
        assert await (await agent.connect()).is_sent_away()
        await hosts[0].stream.aclose()
        await wait_all_tasks_blocked()
        assert await (await agent.connect()).is_answered()
        assert await hosts[1].is_answered()
        assert await (await agent.connect()).is_sent_away()


async def test_who_is_sent_away_is_told_why_even_if_it_has_asked_something(path: Path) -> None:
    async with running(server_of(path, limits=Limits(max_connections=1))) as agent:
        only = await agent.connect()
        assert await only.is_answered()
        for _ in range(100):
            other = await agent.connect()
            await other.send(T.PingRequest)
            assert await other.is_sent_away()
            await other.stream.aclose()
            await wait_all_tasks_blocked()


async def test_each_of_a_crowd_over_the_limit_is_told_why(path: Path) -> None:
    async with running(server_of(path, limits=Limits(max_connections=1))) as agent:
        only = await agent.connect()
        assert await only.is_answered()
        crowd = [await agent.connect() for _ in range(300)]
        for host in crowd:
            assert await host.is_sent_away()
            await host.stream.aclose()
        assert await only.is_answered()


async def test_who_stays_though_it_was_sent_away_is_cut_off(path: Path, autojump_clock: MockClock) -> None:
    async with running(server_of(path, limits=Limits(max_connections=1))) as agent:
        only, stays = await agent.connect(), await agent.connect()
        assert await only.is_answered()
        assert await stays.is_sent_away()
        await trio.sleep(10)
        with pytest.raises(trio.BrokenResourceError):
            await stays.send(T.PingRequest)


async def test_a_listener_that_breaks_is_opened_again_and_nobody_else_notices(
    directory: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    breaking = trio.Event()

    class Breaking(SocketListener):
        async def accept(self) -> tuple[socket.socket, Peer]:
            if str(self.address).endswith("frail.sock") and not breaking.is_set():
                await breaking.wait()
                raise OSError(errno.EINVAL, "of no use any more")
            return await super().accept()

    async def frail(address: Address) -> SocketListener:
        listener = await listen_patiently(address)
        return Breaking(listener._socket, address, listener._owned_file)

    monkeypatch.setattr(server_module, "listen_patiently", frail)
    async with running(server_of(directory / "agent.sock", directory / "frail.sock")) as agent:
        connected = await agent.connect()
        assert await connected.is_answered()
        await wait_all_tasks_blocked()
        breaking.set()
        await wait_all_tasks_blocked()
        assert not (directory / "frail.sock").exists()
        await trio.sleep(1)
        assert await (await agent.connect(directory / "frail.sock")).is_answered()
        assert await connected.is_answered()
        assert await (await agent.connect()).is_answered()


async def test_a_passed_socket_that_breaks_is_tried_again_and_nobody_else_notices(
    directory: Path, path: Path, autojump_clock: MockClock
) -> None:
    class Breaking(SocketListener):
        async def accept(self) -> tuple[socket.socket, Peer]:
            if (error := next(errors, None)) is not None:
                await trio.lowlevel.checkpoint()
                raise error
            return await super().accept()

    errors = iter([OSError(errno.EINVAL, "of no use now"), RuntimeError("unforeseen")])
    address = UnixAddress(str(directory / "passed.sock"))
    with closing(listen(address)) as listener:
        passed = Breaking(listener._socket, address)
        async with running(server_of(path, passed=[passed])) as agent:
            await wait_all_tasks_blocked()  # it is ready with the first of both
            assert await (await agent.connect()).is_answered()
            assert await (await agent.connect(directory / "passed.sock")).is_answered()
            await agent.signal()
            await agent.ended.wait()
        assert listener._socket.fileno() == -1


async def test_a_service_that_crashes_takes_no_connection_down(
    path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Crashing(Disks):
        async def trim_periodically(self, interval: float) -> None:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("no such disk")

    guest = fake_guest(disks=Crashing(mounts=()))
    async with running(server_of(path, guest=guest)) as agent:
        host = await agent.connect()
        await trio.sleep(10)
        assert await host.is_answered()
    failures = [record for record in caplog.records if record.message == "service failed"]
    assert len(failures) >= 3
    assert {vars(record)["service"] for record in failures} == {"disk trim"}


async def test_the_disks_are_trimmed_as_often_as_the_settings_say(path: Path, autojump_clock: MockClock) -> None:
    class Counting(Disks):
        async def trim(self) -> tuple[TrimResult, ...]:
            await trio.lowlevel.checkpoint()
            times.append(trio.current_time())
            return ()

    times: list[float] = []
    server = server_of(path, guest=fake_guest(disks=Counting(mounts=())), disk=DiskSettings(trim_interval=100))
    async with running(server):
        begun = trio.current_time()
        await trio.sleep(350)
    assert [time - begun for time in times] == pytest.approx([100, 200, 300])


async def test_a_shutdown_request_powers_the_machine_off(path: Path) -> None:
    switch = FakePowerSwitch()
    async with running(server_of(path, guest=fake_guest(power=Power(switch, sync=lambda: None)))) as agent:
        host = await agent.connect()
        await host.send(T.ShutdownRequest, trace_id="off")
        assert await host.receive() == Frame(T.ShutdownResponse, "off", b"\x08\x01")
        await switch.touched.wait()


async def test_the_cids_that_are_served_are_those_of_the_settings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(listener: SocketListener, allowed: Sequence[int]) -> SocketListener:
        asked.append(allowed)
        return listener

    asked: list[Sequence[int]] = []
    monkeypatch.setattr(server_module, "guarded", guarded)
    async with running(server_of(path, vsock=VsockSettings(allowed_cids=(2, 7)))):
        assert asked == [(2, 7)]


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_request_that_runs_is_finished_and_answered(
    number: int, path: Path, stage: Stage, manager: Manager, mock_clock: MockClock
) -> None:
    async with running(server_of(path, stage=stage, notifier=Notifier(manager.path))) as agent:
        host = await agent.connect()
        await host.hold("a")
        await wait_all_tasks_blocked()
        manager.heard()
        await agent.signal(number)
        assert manager.heard() == ["STOPPING=1", "STATUS=finishing requests"]
        assert not agent.path.exists()
        with pytest.raises(FileNotFoundError):
            await agent.connect()
        mock_clock.jump(4.9)
        await wait_all_tasks_blocked()
        assert not agent.ended.is_set()
        stage.gate("a").set()
        frame = await host.receive()
        assert frame is not None
        assert (frame.type, frame.trace_id) == (T.SandboxInspectResponse, "a")
        assert await host.receive() is None
        await agent.ended.wait()


async def test_slow_requests_and_those_in_line_are_answered_too(
    path: Path, stage: Stage, mock_clock: MockClock
) -> None:
    async with running(server_of(path, stage=stage)) as agent:
        host = await agent.connect()
        stop = sandbox_v1.StopSandboxRequest(id="slow").SerializeToString()
        await host.send(T.SandboxStopRequest, stop, "slow")
        await host.hold("a")
        await host.hold("b")
        await wait_all_tasks_blocked()
        await agent.signal()
        for name in ("a", "b", "slow"):
            stage.gate(name).set()
            frame = await host.receive()
            assert frame is not None
            assert frame.trace_id == name
        assert await host.receive() is None
        await agent.ended.wait()


async def test_after_the_grace_what_still_runs_is_cancelled(
    path: Path, stage: Stage, autojump_clock: MockClock
) -> None:
    async with running(server_of(path, stage=stage, shutdown_grace=7.0)) as agent:
        host = await agent.connect()
        await host.hold("a")
        await wait_all_tasks_blocked()
        started = trio.current_time()
        os.kill(os.getpid(), signal.SIGTERM)
        await agent.ended.wait()
        assert trio.current_time() - started == pytest.approx(7.0)
        assert stage.log == ["a began", "a was cancelled"]
        assert await host.receive() is None


async def test_a_second_signal_ends_the_wait_at_once(path: Path, stage: Stage, mock_clock: MockClock) -> None:
    async with running(server_of(path, stage=stage)) as agent:
        host = await agent.connect()
        await host.hold("a")
        await wait_all_tasks_blocked()
        await agent.signal(signal.SIGTERM)
        assert not agent.ended.is_set()
        await agent.signal(signal.SIGTERM)
        await agent.ended.wait()
        assert stage.log == ["a began", "a was cancelled"]
        assert await host.receive() is None


async def test_who_has_nothing_running_is_let_go_at_once(path: Path, mock_clock: MockClock) -> None:
    async with running(server_of(path, limits=Limits(max_connections=3))) as agent:
        idle, half_way, half_closed = [await agent.connect() for _ in range(3)]
        assert await idle.is_answered()
        await half_way.stream.send_all(encode_frame(T.PingRequest, "", b"")[:5])
        await half_closed.stream.send_eof()
        await wait_all_tasks_blocked()
        await agent.signal()
        await agent.ended.wait()
        assert [await host.receive() for host in (idle, half_way, half_closed)] == [None] * 3


async def test_a_stream_is_ended_after_the_grace(path: Path, stage: Stage, autojump_clock: MockClock) -> None:
    async with running(server_of(path, stage=stage)) as agent:
        host = await agent.connect()
        await host.send(T.SandboxEventsRequest, trace_id="events")
        await wait_all_tasks_blocked()
        os.kill(os.getpid(), signal.SIGTERM)
        await agent.ended.wait()
        assert stage.log == ["stream began", "stream ended"]


async def test_stopping_does_not_wait_for_an_address_that_can_not_be_bound(mock_clock: MockClock) -> None:
    async with running(server_of(Path("/nonexistent/agent.sock")), ready=False) as agent:
        await wait_all_tasks_blocked()
        await agent.signal()
        await agent.ended.wait()


async def test_the_watchdog_is_fed_while_requests_are_finished(
    path: Path, stage: Stage, manager: Manager, mock_clock: MockClock
) -> None:
    async with running(server_of(path, stage=stage, notifier=Notifier(manager.path, watchdog_interval=1.0))) as agent:
        host = await agent.connect()
        await host.hold("a")
        await wait_all_tasks_blocked()
        await agent.signal()
        manager.heard()
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
        assert manager.heard() == ["WATCHDOG=1"]
