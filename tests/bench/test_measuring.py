"""The measuring end against real servers, and what becomes of those."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.client import PING, Exchange, UnexpectedReplyError, connect, transfer
from bench.processes import ROOT, ServerFailedError, agent, peer, running
from bench.rounds import interleave, seconds_each

if TYPE_CHECKING:
    from collections.abc import Callable


def test_every_contender_takes_its_turn_in_every_round_and_another_one_begins_each() -> None:
    turns: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def turn() -> float:
            turns.append(name)
            return len(turns)

        return turn

    samples = interleave({name: contender(name) for name in "abc"}, rounds=4)
    assert "".join(turns) == "abcbcacababc"
    assert samples["a"].numbers == [1, 6, 8, 10]


def test_the_work_of_a_sample_is_found_by_trying() -> None:
    counts: list[int] = []
    sample = seconds_each(lambda count: counts.extend(range(count)), sample_seconds=0.001)
    counts.clear()
    assert sample() > 0
    assert len(counts) > 100


@pytest.mark.parametrize("module", ["blocking_echo", "trio_echo"])
def test_an_echo_answers_all_the_ways_of_asking(module: str, tmp_path: Path) -> None:
    with peer(module, tmp_path) as server, connect(server.path) as connection:
        exchange = Exchange.learn(connection, PING)
        assert exchange.reply == PING
        exchange.one_by_one(connection, 10)
        exchange.pipelined(connection, 8, 100)
        exchange.pipelined(connection, 8, 3)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):  # not a byte too many
            connection.recv(1)


def test_a_wrong_answer_is_no_measurement(tmp_path: Path) -> None:
    with (
        peer("blocking_echo", tmp_path) as server,
        connect(server.path) as connection,
        pytest.raises(UnexpectedReplyError, match="was answered"),
    ):
        Exchange(b"ping", b"pong").one_by_one(connection, 1)


def test_a_server_that_hangs_up_is_no_measurement() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(UnexpectedReplyError):
            Exchange(b"ping", b"pong").one_by_one(ours, 1)
        with pytest.raises(UnexpectedReplyError, match="closed the connection"):
            Exchange(b"ping", b"pong").pipelined(ours, 2, 10)


def test_sendfile_sends_the_whole_file_for_each_byte(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3_000_000))
    buffer = bytearray(3_000_000)
    with peer("sendfile", tmp_path, str(file)) as server, connect(server.path) as connection:
        transfer(connection, b"x", len(buffer) // 2, bytearray(1000))
        transfer(connection, b"x", len(buffer) // 2, bytearray(1000))
        view, received = memoryview(buffer), 0
        while received < len(buffer):
            received += connection.recv_into(view[received:])
    assert buffer == file.read_bytes()


def test_a_server_ends_with_its_context_whatever_happened_in_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), peer("trio_echo", tmp_path) as server:
        _ = 1 / 0
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.processes._STOP_TIMEOUT", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with running([sys.executable, "-c", deaf], tmp_path / "log") as process:
        while not (tmp_path / "log").read_bytes():
            os.sched_yield()
    assert process.returncode == -9


def test_an_agent_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.processes._AGENT_TOML", "[clock]\nfollow_moon = true\n")
    with pytest.raises(ServerFailedError, match="follow_moon"), agent(tmp_path):
        pass


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    env = os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)  # noqa: S603  ours


def test_the_whole_of_it_prints_a_table_and_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory() as directory:  # a short path: those of Unix sockets have at most 107 bytes
        done = bench("--quick", "pings", TMPDIR=directory)
        assert list(Path(directory).iterdir()) == []
    assert done.returncode == 0, done.stderr
    assert "ping round trip" in done.stdout
    assert "Trio SocketStream echo" in done.stdout


def test_a_name_that_is_unknown_is_an_error_that_names_those_there_are() -> None:
    done = bench("pongs")
    assert done.returncode == 2
    assert "there is no pongs; there are pings" in done.stderr
