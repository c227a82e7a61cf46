"""Detached processes: what is kept of their output, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes.busybox import build
from arcbox_guest.sandboxes.detached import Channel, DetachedSpec
from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec
from arcbox_guest.sandboxes.oci import starter
from arcbox_guest.sandboxes.oci.driver import OciDriver
from arcbox_guest.sandboxes.oci.recording import Recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_guest.sandboxes.detached import DetachedProcess

KEPT = 256 * 1024
BLOCK = 4096
NUMBERS = 400_000
"""Of lines that a process counts: 2.6 MB, some ten times what is kept of it where that is bounded."""

LAST = 1_300_000
"""Of lines that a process counts twice: 19 MB, more than is kept of it at the same time."""

AGENT = """
    import sys, trio
    from pathlib import Path
    from arcbox_guest.sandboxes.detached import DetachedSpec
    from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec
    from arcbox_guest.sandboxes.oci.driver import OciDriver

    async def main():
        driver = OciDriver(Path(sys.argv[1]))
        limits = ResourceLimits(vcpus=1, memory_mib=64)
        await driver.create(Spec(id="box", rootfs=sys.argv[2], limits=limits))
        command = ExecSpec(argv=("sh", "-c", sys.argv[3]))
        process = await driver.start_detached("box", DetachedSpec(name="counter", command=command, stdin=True))
        print("started", flush=True)
        await process.run()

    trio.run(main)
"""
"""An agent that starts a process, and is killed then. Its arguments: data directory, root file system, script."""


async def follow(process: DetachedProcess) -> None:
    await process.run()


@asynccontextmanager
async def followed(process: DetachedProcess) -> AsyncIterator[DetachedProcess]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, process)
        yield process
        nursery.cancel_scope.cancel()


async def everything(process: DetachedProcess, offset: int = 0) -> bytes:
    data = b""
    while (piece := await process.read(Channel.STDOUT, offset + len(data))).data:
        assert piece.offset == offset + len(data)
        data += piece.data
    return data


def recorder(data_dir: Path) -> int:
    """The process id of the one recorder of a data directory: it has the log there open."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            if (
                path.readlink() == data_dir / "recorder.log"
                and b"recorder.py" in (path.parents[1] / "cmdline").read_bytes()
            ):
                found.append(int(path.parts[2]))
        except OSError:
            continue
    (pid,) = found
    return pid


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[OciDriver]:
    """A driver with a sandbox that is called box, and that keeps little."""
    build(tmp_path / "rootfs")
    driver = OciDriver(tmp_path / "data", kept=KEPT)
    try:
        limits = ResourceLimits(vcpus=1, memory_mib=64)
        await driver.create(Spec(id="box", rootfs=str(tmp_path / "rootfs"), limits=limits))
        yield driver
    finally:
        with trio.CancelScope(shield=True):
            await driver.destroy("box")
            await driver.close()


def spec(script: str, *, stdin: bool = False) -> DetachedSpec:
    return DetachedSpec(name="process", command=ExecSpec(argv=("sh", "-c", script)), stdin=stdin)


async def test_the_oldest_output_goes_first_and_the_gap_has_its_true_offset(driver: OciDriver) -> None:
    process = await driver.start_detached("box", spec(f"seq {NUMBERS}"))
    await process.run()
    written = b"".join(b"%d\n" % number for number in range(1, NUMBERS + 1))
    assert process.length(Channel.STDOUT) == len(written)
    oldest = await process.read(Channel.STDOUT, 0)
    assert KEPT <= len(written) - oldest.offset <= KEPT + KEPT // 8 + BLOCK
    assert await everything(process, oldest.offset) == written[oldest.offset :]
    (file,) = driver.data_dir.rglob("sessions/process/stdout")
    assert file.stat().st_blocks * 512 <= KEPT * 1.25


async def test_a_recorder_that_is_killed_costs_no_output(driver: OciDriver) -> None:
    half = b"".join(b"%d\n" % number for number in range(1, 100_001))  # more than a pipe takes: it ends after the next
    script = "seq 100000; cat; seq 100000; exit 7"
    async with followed(await driver.start_detached("box", spec(script, stdin=True))) as process:
        assert (await process.read(Channel.STDOUT, 0)).data
        os.kill(recorder(driver.data_dir), signal.SIGKILL)  # with it, its stdin ends
        with trio.fail_after(30):
            ended = await process.wait()
        oldest = (await process.read(Channel.STDOUT, 0)).offset
        assert await everything(process, oldest) == (half * 2)[oldest:]
        assert process.length(Channel.STDOUT) == len(half * 2)
        assert ended.code == 7


async def test_an_agent_that_is_killed_leaves_its_process_running_and_its_output_whole(tmp_path: Path) -> None:
    build(tmp_path / "rootfs")
    arguments = [str(tmp_path / "data"), str(tmp_path / "rootfs"), f"seq {LAST}; read go; seq {LAST}; exit 7"]
    driver = OciDriver(tmp_path / "data")
    try:
        command = [sys.executable, "-c", textwrap.dedent(AGENT), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:  # noqa: S603, ASYNC220  ours
            assert agent.stdout is not None
            assert await trio.to_thread.run_sync(agent.stdout.readline) == b"started\n"
            agent.kill()
        (process,) = await driver.detached("box")
        async with followed(process):
            half = b"".join(b"%d\n" % number for number in range(1, LAST + 1))
            first = b""
            while len(first) < len(half):
                first += (await process.read(Channel.STDOUT, len(first))).data
            assert first == half
            await process.write_stdin(0, b"go\n")
            second = b""
            while (piece := await process.read(Channel.STDOUT, len(half) + len(second))).data:
                second += piece.data[: len(piece.data) // 2 + 1]  # as a reader has it that is cut off, and comes back
            assert second == half
            assert (await process.wait()).code == 7
    finally:
        with trio.CancelScope(shield=True):
            await driver.destroy("box")
            await driver.close()


async def test_a_process_whose_agent_was_killed_before_it_was_started_can_be_started_once_more(
    driver: OciDriver,
) -> None:
    process = await driver.start_detached("box", spec("true"))
    await process.run()
    (directory,) = driver.data_dir.rglob("sessions/process")
    for name in ("begun", "pid", "exit"):
        (directory / name).unlink()
    assert await driver.detached("box") == []
    again = await driver.start_detached("box", spec("exit 7"))
    assert (await again.run()).code == 7


async def test_a_process_of_an_agent_that_did_not_write_down_that_it_had_begun_is_found(driver: OciDriver) -> None:
    process = await driver.start_detached("box", spec("read word; exit $word", stdin=True))
    (directory,) = driver.data_dir.rglob("sessions/process")
    with trio.fail_after(20):
        while True:  # the runtime tells nobody
            await trio.sleep(0.01)
            if (directory / "pid").exists():
                break
    (directory / "begun").unlink()
    (found,) = await driver.detached("box")
    async with followed(found):
        await process.write_stdin(0, b"9\n")
        assert (await found.wait()).code == 9


async def test_a_process_that_an_older_agent_started_by_conmon_is_found_with_its_exit_code(driver: OciDriver) -> None:
    await driver.start_detached("box", spec("read word; exit $word", stdin=True))
    (directory,) = driver.data_dir.rglob("sessions/process")
    record = json.loads((directory / "session.json").read_bytes())
    (directory / "conmon").write_text(f"{record.pop('parent')} {record.pop('started')}")
    (directory / "session.json").write_text(json.dumps(record))
    (directory / "exit").mkdir()
    (found,) = await driver.detached("box")
    async with followed(found):
        (directory / "exit" / "box").write_text("9")  # as conmon does at its end
        await found.write_stdin(0, b"7\n")
        assert (await found.wait()).code == 9


async def test_a_parent_that_comes_after_the_next_agent_starts_nothing(
    driver: OciDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Recording.open

    async def open_late(self: Recording, *, new: bool) -> None:
        await record(self, new=new)
        next_agent = OciDriver(tmp_path / "data", kept=KEPT)
        assert await next_agent.detached("box") == []
        await next_agent.close()

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "open", open_late)
        with pytest.raises(GuestError):
            await driver.start_detached("box", spec("touch /began"))
    again = await driver.start_detached("box", spec("test ! -e /began"))
    assert (await again.run()).code == 0


def is_starter(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has ended: other tests' processes are children, too
        return starter.__file__ in process.cmdline()
    return False


async def test_a_starter_that_is_killed_is_started_again(driver: OciDriver) -> None:
    process = await driver.start_detached("box", spec("cat; exit 7", stdin=True))
    async with followed(process):
        (found,) = filter(is_starter, psutil.Process().children())
        found.kill()
        await trio.to_thread.run_sync(os.waitid, os.P_PID, found.pid, os.WEXITED | os.WNOWAIT)
        another = DetachedSpec(name="another", command=ExecSpec(argv=("sh", "-c", "exit 8")))
        assert (await (await driver.start_detached("box", another)).run()).code == 8
        await process.write_stdin(0, b"", last=True)
        assert (await process.wait()).code == 7


async def test_a_process_that_closes_its_stdin_gets_no_more_of_it(driver: OciDriver) -> None:
    process = await driver.start_detached("box", spec("exec <&-; echo closed; exec sleep 1000", stdin=True))
    async with followed(process):
        assert (await process.read(Channel.STDOUT, 0)).data == b"closed\n"
        with trio.fail_after(30):
            await process.write_stdin(0, bytes(4 << 20))
        assert process.stdin_closed
        await process.kill()


async def test_the_ports_that_something_listens_on_are_seen(driver: OciDriver) -> None:
    assert await driver.listening("box") == set()
    process = await driver.start_detached("box", spec("nc -l -p 8080 & exec nc -l -p 8081"))
    async with followed(process):
        while await driver.listening("box") != {8080, 8081}:  # noqa: ASYNC110  as whoever waits for a port
            await trio.sleep(0.01)
