"""The supervisor of one daemon, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from attrs import evolve

from arcbox_guest.child import PidFd
from arcbox_guest.daemon_process import DaemonProcess, Identity, bound_log
from arcbox_guest.daemons import Daemon, DaemonSpec, DaemonStatus
from arcbox_guest.errors import UnavailableError
from arcbox_guest.ready_notice import ReadyNotice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

WAIT = "read end < never"
"""For ever: a FIFO that nobody writes to. No other process is started for it that could be left behind."""

ANSWERS = f'echo "I am $$"; : > answers; {WAIT}'
"""A daemon that answers by having a file."""


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[DaemonSpec]:
    async def probe() -> bool:
        return await trio.Path(tmp_path / "answers").exists()

    spec = DaemonSpec(name="test", argv=(), probe=probe, start_timeout=30, state_dir=tmp_path / "state")
    yield scripted(spec, tmp_path, ANSWERS)
    identity = Identity.read(spec.pid_file)
    pidfd = identity and identity.open()
    if pidfd:
        pidfd.signal(signal.SIGKILL)
        pidfd.reap()
        pidfd.discard()


def scripted(spec: DaemonSpec, directory: Path, commands: str) -> DaemonSpec:
    script, fifo = directory / "program", directory / "never"
    script.write_text(f"#!/bin/sh\ncd {directory}\n{commands}\n")
    if not fifo.exists():
        os.mkfifo(fifo)
    script.chmod(0o755)
    return evolve(spec, argv=(str(script),))


@asynccontextmanager
async def supervised(spec: DaemonSpec) -> AsyncIterator[Daemon]:
    """A daemon's supervisor, as in one life of an agent."""
    daemon = Daemon(spec)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run)
        yield daemon
        nursery.cancel_scope.cancel()


async def until(daemon: Daemon, status: DaemonStatus) -> None:
    while daemon.status is not status:
        await daemon.changed()


def alive(pid: int) -> bool:
    with suppress(OSError):
        pidfd = PidFd.open(pid)
        ended = pidfd.ended()
        pidfd.discard()
        return not ended
    return False


def pid_of(daemon: Daemon) -> int:
    assert daemon.pid is not None
    return daemon.pid


async def test_a_daemon_runs_in_a_session_of_its_own_until_it_is_stopped(spec: DaemonSpec) -> None:
    async with supervised(spec) as daemon:
        await daemon.start()
        pid = pid_of(daemon)
        assert os.getsid(pid) == pid
        assert spec.log.read_text() == f"I am {pid}\n"
        await daemon.stop()
        assert daemon.status is DaemonStatus.STOPPED
        assert not alive(pid)


async def test_a_hundred_who_want_it_at_once_get_one(spec: DaemonSpec) -> None:
    async with supervised(spec) as daemon:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(daemon.start)
        assert len(spec.log.read_text().splitlines()) == 1
        await daemon.stop()


async def test_one_that_ends_before_it_answers_says_why_and_can_be_tried_again(
    spec: DaemonSpec, tmp_path: Path
) -> None:
    broken = scripted(spec, tmp_path, "echo reading settings; echo no such disk >&2; exit 3")
    async with supervised(broken) as daemon:
        with pytest.raises(UnavailableError, match=r"test exited with status 3; .*reading settings \| no such disk"):
            await daemon.start()
        assert daemon.status is DaemonStatus.FAILED
        await daemon.start(scripted(spec, tmp_path, ANSWERS))
        await daemon.stop()


async def test_one_that_is_not_there_says_so(spec: DaemonSpec) -> None:
    async with supervised(evolve(spec, argv=("/nowhere/daemon",))) as daemon:
        with pytest.raises(UnavailableError, match=r"status 127; .*/nowhere/daemon: not found"):
            await daemon.start()


async def test_one_that_does_not_answer_in_time_is_ended(spec: DaemonSpec, tmp_path: Path) -> None:
    silent = evolve(scripted(spec, tmp_path, f"echo hello; {WAIT}"), start_timeout=0.5)
    async with supervised(silent) as daemon:
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.5 s"):
            await daemon.start()
        assert daemon.pid is None
        identity = Identity.read(spec.pid_file)
        assert identity is not None
        with pytest.raises(ProcessLookupError):  # nor is it a zombie
            os.kill(identity.pid, 0)


async def test_one_that_says_that_it_is_ready_is_not_probed_any_more(spec: DaemonSpec, tmp_path: Path) -> None:
    async def no_answer() -> bool:
        await trio.lowlevel.checkpoint()
        return False

    say = "import os, socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=up\\nREADY=1', address)"
    say = say.replace("address", "'\\0' + os.environ['NOTIFY_SOCKET'][1:]")
    notifying = scripted(spec, tmp_path, f"exec {sys.executable} -c \"{say}; open('never').read()\"")
    async with supervised(evolve(notifying, probe=no_answer)) as daemon:
        await daemon.start()
        await daemon.stop()


async def test_what_another_process_says_does_not_make_it_ready() -> None:
    async with ReadyNotice.listening() as notice, trio.open_nursery() as nursery:
        said = trio.Event()

        async def wait() -> None:
            await notice.wait(os.getpid())
            said.set()

        nursery.start_soon(wait)
        say = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', sys.argv[1])"
        name = notice.address[1:]
        await trio.run_process([sys.executable, "-c", say.replace("sys.argv[1]", f"'\\0{name}'")])
        await trio.testing.wait_all_tasks_blocked()
        assert not said.is_set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for message in (b"STATUS=starting", b"READY=1\n"):
                sender.sendto(message, f"\0{name}")
        await said.wait()


async def test_one_that_ends_by_itself_is_started_again(spec: DaemonSpec) -> None:
    async with supervised(spec) as daemon:
        await daemon.start()
        first = pid_of(daemon)
        os.kill(first, signal.SIGKILL)
        await until(daemon, DaemonStatus.FAILED)
        assert daemon.detail.startswith("was killed by SIGKILL; its log ends with: I am")
        await until(daemon, DaemonStatus.READY)
        assert pid_of(daemon) != first
        assert daemon.restarts == 1
        await daemon.stop()


async def test_stopping_one_that_waits_for_its_restart_leaves_none(spec: DaemonSpec) -> None:
    async with supervised(spec) as daemon:
        await daemon.start()
        os.kill(pid_of(daemon), signal.SIGKILL)
        await until(daemon, DaemonStatus.FAILED)
        await daemon.stop()
        assert daemon.status is DaemonStatus.STOPPED
        assert daemon.pid is None


async def test_the_next_agent_adopts_it_and_notices_its_end(spec: DaemonSpec) -> None:
    async with supervised(spec) as daemon:
        await daemon.start()
        pid = pid_of(daemon)
    assert alive(pid)
    async with supervised(spec) as successor:
        await successor.start()
        assert successor.pid == pid
        os.kill(pid, signal.SIGKILL)
        await until(successor, DaemonStatus.FAILED)
        await until(successor, DaemonStatus.READY)
        await successor.stop()


async def test_it_survives_an_agent_that_is_killed(spec: DaemonSpec) -> None:
    """Started by a process that is then killed, so that the next agent is not its parent."""
    code = (
        "import os, sys; from pathlib import Path; from arcbox_guest.daemon_process import DaemonProcess;"
        "log, pid_file = map(Path, sys.argv[1:3]);"
        "DaemonProcess.start(sys.argv[3:], environment=os.environ, log=log, pid_file=pid_file);"
        "os.kill(os.getpid(), 9)"
    )
    arguments = (str(spec.log), str(spec.pid_file), *spec.argv)
    ended = await trio.run_process([sys.executable, "-c", code, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    async with supervised(spec) as daemon:
        await daemon.start()
        assert len(spec.log.read_text().splitlines()) == 1
        os.kill(pid_of(daemon), signal.SIGKILL)
        await until(daemon, DaemonStatus.FAILED)
        assert "with a status that only the agent which started it could know" in daemon.detail
        await daemon.stop()


def test_a_pid_that_is_somebody_elses_by_now_is_not_believed(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/sleep", "1000"]) as other:
        try:
            identity = Identity.of(other.pid, "/bin/sleep")
            right = identity.open()
            assert right is not None
            right.discard()
            for wrong in (evolve(identity, start_time=1), evolve(identity, program="/usr/sbin/dockerd")):
                wrong.write(tmp_path / "pid")
                assert DaemonProcess.find(tmp_path / "pid", tmp_path / "log") is None
        finally:
            other.kill()


@pytest.mark.parametrize("content", ["", "12", "a\nb\nc\n", "4194304\n1\n/bin/sleep\n"])
def test_a_pid_file_of_no_process_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    assert DaemonProcess.find(tmp_path / "pid", tmp_path / "log") is None


def test_one_that_cannot_be_put_into_its_cgroup_is_not_started(spec: DaemonSpec, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cgroup\.procs"):
        DaemonProcess.start(
            spec.argv, environment={}, log=spec.log, pid_file=spec.pid_file, cgroup=Path("/proc/self/fdinfo")
        )
    assert spec.log.read_text() == ""
    assert not spec.pid_file.exists()


async def test_one_that_ignores_sigterm_is_killed(spec: DaemonSpec, tmp_path: Path) -> None:
    stubborn = scripted(spec, tmp_path, f"trap '' TERM; : > answers; {WAIT}")
    async with supervised(evolve(stubborn, stop_timeout=0.2)) as daemon:
        await daemon.start()
        pid = pid_of(daemon)
        await daemon.stop()
        assert not alive(pid)


def test_a_log_beyond_its_limit_keeps_its_newest_lines_while_its_daemon_writes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as daemon:
        for number in range(1000):
            daemon.write(b"line %d\n" % number)
        bound_log(log, 20_000)
        assert log.stat().st_size > 8000
        bound_log(log, 1000)
        daemon.write(b"and on\n")
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["line 999", "and on"]
    assert all(line.startswith("line ") for line in lines[:-1])
    assert log.stat().st_size <= 510
