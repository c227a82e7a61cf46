"""The agent as a process of its own: signals, its exit status, and sockets that a service manager passed."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest
from attrs import define

from arcbox_agent.addresses import CID_ANY
from arcbox_client._agent_process import COMMAND, SETTINGS
from arcbox_protocol import FrameDecoder, MessageType, arcbox_v1, encode_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent.service_manager import Manager

T = MessageType


HAND_OVER = """
import os, sys
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(sys.argv[1].split()))
for number, passed in enumerate(sys.argv[1].split(), 3):
    os.dup2(int(passed), number)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between fork and exec."""


@define
class Agent:
    """A real agent."""

    process: subprocess.Popen[bytes]
    log_path: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def log(self) -> str:
        return self.log_path.read_text()


@contextmanager
def agent_process(
    directory: Path, *arguments: str, settings: str = "", passed: list[socket.socket] | None = None
) -> Iterator[Agent]:
    """Start an agent that tells the manager when it is ready."""
    (directory / "agent.toml").write_text((SETTINGS + settings).replace("$DIRECTORY", str(directory)))
    command = [*COMMAND, "serve", "--config", str(directory / "agent.toml"), *arguments]
    numbers = [one.fileno() for one in passed or []]
    if passed:
        command = [sys.executable, "-c", HAND_OVER, " ".join(map(str, numbers)), *command]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own program
            command,
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
            pass_fds=numbers,
            stdout=log,
            stderr=log,
        )
        try:
            yield Agent(process, directory / "log")
        finally:
            process.kill()
            process.wait()


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(path))
    return client


def pings(client: socket.socket) -> bool:
    client.sendall(encode_frame(T.PingRequest, "ping", b""))
    (frame,) = FrameDecoder().feed(client.recv(4096))
    return (frame.type, frame.trace_id) == (T.PingResponse, "ping")


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0_and_takes_its_file_away(
    number: int, directory: Path, manager: Manager
) -> None:
    path = directory / "agent.sock"
    with agent_process(directory, "--listen", f"unix:{path}") as agent:
        assert manager.wait_for("READY=1") == ["READY=1", f"STATUS=listening on unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with connected(path) as client:
            assert pings(client)
            assert agent.stop(number) == 0
            assert client.recv(1) == b""
        assert manager.heard() == ["STOPPING=1", "STATUS=finishing requests", "STATUS=stopping sandboxes"]
        assert not path.exists()


@pytest.fixture
def big_file(directory: Path) -> Path:
    """A file whose reply fits in no socket's buffers: 64 MiB."""
    path = directory / "big"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return path


def ask_for(client: socket.socket, path: Path) -> None:
    """Ask for a file, and see that its reply is on the way."""
    request = arcbox_v1.MmapReadFileRequest(path=str(path), length=64 << 20)
    client.sendall(encode_frame(T.MmapReadFileRequest, "file", request.SerializeToString()))
    assert client.recv(1, socket.MSG_PEEK)


def test_a_reply_that_is_on_the_way_is_finished_before_the_process_ends(
    directory: Path, manager: Manager, big_file: Path
) -> None:
    path = directory / "agent.sock"
    with agent_process(directory, "--listen", f"unix:{path}", settings="shutdown_grace = 50\n") as agent:
        manager.wait_for("READY=1")
        with connected(path) as client:
            ask_for(client, big_file)
            agent.process.terminate()
            manager.wait_for("STOPPING=1")
            (frame,) = FrameDecoder(128 << 20).feed(read_all(client))
        reply = arcbox_v1.MmapReadFileResponse.FromString(frame.payload)
        assert (frame.trace_id, reply.bytes_read, len(reply.data)) == ("file", 64 << 20, 64 << 20)
        assert agent.process.wait(20) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(
    second: int, directory: Path, manager: Manager, big_file: Path
) -> None:
    path = directory / "agent.sock"
    with agent_process(directory, "--listen", f"unix:{path}", settings="shutdown_grace = 50\n") as agent:
        manager.wait_for("READY=1")
        with connected(path) as client:
            ask_for(client, big_file)
            agent.process.terminate()
            manager.wait_for("STOPPING=1")
            assert agent.stop(second) == 0
            assert len(read_all(client)) < 64 << 20


def test_after_the_grace_the_process_ends_whatever_runs(directory: Path, manager: Manager, big_file: Path) -> None:
    path = directory / "agent.sock"
    with agent_process(directory, "--listen", f"unix:{path}", settings="shutdown_grace = 0.1\n") as agent:
        manager.wait_for("READY=1")
        with connected(path) as client:
            ask_for(client, big_file)
            assert agent.stop() == 0


def test_an_agent_takes_the_place_of_one_that_was_killed(directory: Path, manager: Manager) -> None:
    path = directory / "agent.sock"
    with agent_process(directory, "--listen", f"unix:{path}") as agent:
        manager.wait_for("READY=1")
        agent.stop(signal.SIGKILL)
    assert path.is_socket()
    with agent_process(directory, "--listen", f"unix:{path}"):
        manager.wait_for("READY=1")
        with connected(path) as client:
            assert pings(client)


def wait_until_all_is_loaded(agent: Agent, path: Path) -> None:
    """Wait for the first line of the log and for psutil, which the agent loads after it is ready."""
    deadline = time.monotonic() + 20
    while not agent.log:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with connected(path) as client:
        client.sendall(encode_frame(T.GetSystemInfoRequest, "", b""))
        assert client.recv(4096)


def test_an_agent_that_runs_out_of_descriptors_goes_on_when_it_has_some_again(
    directory: Path, manager: Manager
) -> None:
    path = directory / "agent.sock"
    with agent_process(directory, "--listen", f"unix:{path}") as agent, ExitStack() as stack:
        manager.wait_for("READY=1")
        wait_until_all_is_loaded(agent, path)
        in_use = psutil.Process(agent.process.pid).num_fds()
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (in_use + 3, in_use + 3))
        served = [stack.enter_context(connected(path)) for _ in range(3)]
        for client in served:
            assert pings(client)
        waiting = [stack.enter_context(connected(path)) for _ in range(3)]
        served[0].shutdown(socket.SHUT_WR)  # to watch such a peer takes a descriptor more
        for client in served:
            client.close()
        for client in waiting:
            assert pings(client)
        assert agent.stop() == 0
    assert "Too many open files" in agent.log
    assert "Traceback" not in agent.log


def passable(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


def test_passed_sockets_stand_in_for_the_default_address(directory: Path, manager: Manager) -> None:
    paths = [directory / "one.sock", directory / "two.sock"]
    with passable(paths[0]) as one, passable(paths[1]) as two, agent_process(directory, passed=[one, two]) as agent:
        ready, status = manager.wait_for("READY=1")
        names = status.removeprefix("STATUS=listening on ").split(", ")
        assert (ready, sorted(names)) == ("READY=1", sorted(f"unix:{path}" for path in paths))
        for path in paths:
            with connected(path) as client:
                assert pings(client)
        assert agent.stop() == 0
    assert all(path.is_socket() for path in paths), "they are the service manager's"


def test_passed_sockets_come_beside_addresses_that_somebody_chose(directory: Path, manager: Manager) -> None:
    passed, chosen = directory / "passed.sock", directory / "chosen.sock"
    with passable(passed) as listening, agent_process(directory, "--listen", f"unix:{chosen}", passed=[listening]):
        manager.wait_for("READY=1")
        for path in (passed, chosen):
            with connected(path) as client:
                assert pings(client)


def test_an_address_that_was_passed_and_chosen_is_listened_on_once(directory: Path, manager: Manager) -> None:
    path = directory / "agent.sock"
    with passable(path) as listening, agent_process(directory, "--listen", f"unix:{path}", passed=[listening]):
        assert manager.wait_for("READY=1") == ["READY=1", f"STATUS=listening on unix:{path}"]


def test_a_passed_vsock_socket_is_served_on(directory: Path, manager: Manager) -> None:
    try:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        pytest.skip(f"no AF_VSOCK here: {error}")
    with listening:
        listening.bind((CID_ANY, 0xFFFF_FFFF))
        listening.listen()
        port = listening.getsockname()[1]
        with agent_process(directory, passed=[listening]):
            assert manager.wait_for("READY=1") == ["READY=1", f"STATUS=listening on vsock:{port}"]


def test_a_passed_socket_that_can_not_be_served_on_is_one_clear_line(directory: Path, manager: Manager) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        agent_process(directory, passed=[listening]) as agent,
    ):
        assert agent.process.wait(20) == 1
        assert agent.log == (
            "arcbox-agent: passed descriptor 3 is neither a vsock nor a named Unix socket:"
            " listen on a vsock or a Unix stream socket\n"
        )
    assert manager.heard() == []
