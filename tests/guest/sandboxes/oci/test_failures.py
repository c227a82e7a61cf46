"""Runtimes that fail or hang, disks that are full, inits that are killed, agents that were killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.errors import GuestError, NotSupportedError, TimedOutError, UnavailableError
from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec, TerminalSize
from arcbox_guest.sandboxes.oci import exec as oci_exec
from arcbox_guest.sandboxes.oci import runtime
from arcbox_guest.sandboxes.oci.driver import OciDriver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arcbox_guest.sandboxes.driver import Process
    from tests.guest.sandboxes.oci.conftest import Boxes, World


crun = pytest.mark.parametrize("technique", ["crun"], indirect=True)
"""For what happens with a stand-in for the runtime."""


def program(path: Path, script: str) -> str:
    """A stand-in for a runtime that behaves badly."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def use(world: World, path: str) -> None:
    """Have a driver call another runtime from now on."""
    called = (await world.driver._equip()).runtime
    called.close()
    called.path, called._sealed = path, None


def lose_patience(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    """With runtimes; not before what a good one has to do is done, on whatever machine."""
    monkeypatch.setattr(runtime, "_CREATING", seconds)
    monkeypatch.setattr(oci_exec, "STARTING", seconds)


LOG = 'while [ $# -gt 0 ]; do [ "$1" = --log ] && log=$2; shift; done'

FAILURES = {
    "without a word": ("exit 1", "ended with 1"),
    "with a message": (
        f"""{LOG}; echo '{{"level": "error", "msg": "no such thing"}}' >$log; exit 1""",
        "no such thing",
    ),
    "with garbage for a message": (f"{LOG}; head -c 1000 /dev/urandom >$log; exit 3", "ended with 3"),
    "killed": ("kill -9 $$", "ended with 137"),
    "successfully, without a sandbox": ("exit 0", "process id"),
}


@crun
@pytest.mark.parametrize("how", FAILURES)
async def test_a_runtime_that_fails_to_create_is_an_error_and_nothing_is_left(
    boxes: Boxes, world: World, tmp_path: Path, how: str
) -> None:
    script, message = FAILURES[how]
    await use(world, program(tmp_path / "bad", script))
    with pytest.raises(GuestError, match=message):
        await boxes()
    assert world.leftovers() == []


@crun
async def test_a_runtime_that_hangs_while_it_creates_is_ended_with_all_its_children(
    boxes: Boxes, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_patience(monkeypatch)
    await use(world, program(tmp_path / "bad", "sleep 1000 & setsid sleep 1000 & wait"))
    with pytest.raises(TimedOutError, match="did not end in"):
        await boxes()
    assert world.leftovers() == []


@crun
async def test_a_creation_that_hangs_can_be_cancelled(boxes: Boxes, world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    await use(world, program(tmp_path / "bad", f"echo >{tmp_path}/fifo; sleep 1000"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boxes)
        await trio.to_thread.run_sync((tmp_path / "fifo").read_text)  # it hangs now
        nursery.cancel_scope.cancel()
    assert world.leftovers() == []


@crun
@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_a_runtime_that_hangs_while_it_starts_a_process_is_an_error(
    boxes: Boxes, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: TerminalSize | None
) -> None:
    await boxes()
    lose_patience(monkeypatch)
    await use(world, program(tmp_path / "bad", "sleep 1000 & setsid sleep 1000 & wait"))
    with pytest.raises(TimedOutError, match="did not"):
        async with world.driver.process("box", ExecSpec(argv=("true",), terminal=terminal)) as process:
            await process.wait()
    with trio.fail_after(5):
        await world.driver.idle("box")


@crun
@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_a_runtime_that_hangs_since_the_sandbox_has_ended_is_not_to_blame(
    boxes: Boxes, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: TerminalSize | None
) -> None:
    await boxes()
    os.mkfifo(tmp_path / "fifo")
    await use(world, program(tmp_path / "bad", f"echo >{tmp_path}/fifo; sleep 1000"))
    lose_patience(monkeypatch, 1.0)
    codes: list[int] = []

    async def run() -> None:
        if terminal is None:
            async with world.driver.process("box", ExecSpec(argv=("true",))) as process:
                codes.append(await process.wait())
            return
        with pytest.raises(UnavailableError, match="the sandbox ended"):
            async with world.driver.process("box", ExecSpec(argv=("true",), terminal=terminal)):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.to_thread.run_sync((tmp_path / "fifo").read_text)  # it hangs now
        world.kill_init("box")
    assert codes == ([137] if terminal is None else [])


@crun
async def test_a_runtime_that_fails_to_start_a_process_says_why_on_its_stderr(
    boxes: Boxes, world: World, tmp_path: Path
) -> None:
    box = await boxes()
    await use(world, program(tmp_path / "bad", "cat >/dev/null; echo 'can not' >&2; exit 1"))
    result = await box.run("true")
    assert (result.exit_code, result.stderr) == (1, b"can not\n")


@crun
async def test_a_runtime_that_fails_to_open_a_terminal_is_an_error_that_says_why(
    boxes: Boxes, world: World, tmp_path: Path
) -> None:
    await boxes()
    await use(world, program(tmp_path / "bad", "echo 'can not' >&2; exit 1"))
    with pytest.raises(GuestError, match="can not"):
        async with world.driver.process("box", ExecSpec(argv=("true",), terminal=TerminalSize())):
            pass


async def test_what_is_not_installed_is_named_with_its_setting(tmp_path: Path) -> None:
    spec = Spec(id="box", rootfs="/")
    with pytest.raises(NotSupportedError, match=r"not-installed.*sandbox\.runtime"):
        await OciDriver(tmp_path / "data", runtime="not-installed").create(spec)
    with pytest.raises(NotSupportedError, match=r"not-installed.*sandbox\.init"):
        await OciDriver(tmp_path / "data", init="not-installed").create(spec)


@crun
async def test_a_runtime_that_is_gone_is_an_error(boxes: Boxes, world: World, tmp_path: Path) -> None:
    await boxes()
    await use(world, str(tmp_path / "gone"))
    with pytest.raises(GuestError, match="No such file"):
        async with world.driver.process("box", ExecSpec(argv=("true",))):
            pass
    with pytest.raises(GuestError):
        await boxes("other")
    await use(world, shutil.which("crun") or "")
    assert (await (await boxes("third")).run("true")).exit_code == 0


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=True)  # noqa: S603, S607
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)  # noqa: S603, S607


async def test_a_disk_that_is_full_is_an_error_that_leaves_nothing(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        driver = OciDriver(disk / "data")
        spec = Spec(id="box", rootfs=world.rootfs, limits=ResourceLimits(vcpus=1, memory_mib=64))
        await driver.create(spec)
        await driver.destroy("box")
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=4k"], capture_output=True, check=False)  # noqa: ASYNC221, S603, S607
        with pytest.raises(GuestError, match="No space left on device"):
            await driver.create(spec)
        assert await driver.existing() == []
        (disk / "filler").unlink()
        await driver.create(spec)
        await driver.destroy("box")
        await driver.close()


async def test_a_disk_that_fills_up_is_the_processes_own_trouble(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        driver = OciDriver(disk / "data")
        await driver.create(Spec(id="box", rootfs=world.rootfs, limits=ResourceLimits(vcpus=1, memory_mib=64)))
        fill = "cat /dev/zero >/full 2>/dev/null; echo $?; rm /full; echo room >/room && cat /room"
        async with driver.process("box", ExecSpec(argv=("sh", "-c", fill))) as process:
            assert await process.wait() == 0
            assert bytes(await process.stdout.receive()) == b"1\nroom\n"
        await driver.destroy("box")
        await driver.close()


@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_a_process_whose_sandboxs_init_is_killed_was_killed(
    boxes: Boxes, world: World, terminal: TerminalSize | None
) -> None:
    await boxes()
    command = ExecSpec(argv=("sh", "-c", "echo up; cat"), terminal=terminal)
    async with world.driver.process("box", command) as one, world.driver.process("box", command) as other:
        for process in (one, other):
            assert bytes(await process.stdout.receive()).strip() == b"up"
        world.kill_init("box")
        assert await one.wait() == 137
        assert await other.wait() == 137
    assert await world.driver.ended("box")
    with pytest.raises(UnavailableError):
        async with world.driver.process("box", command):
            pass


@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_an_init_that_is_killed_while_processes_are_started_is_no_riddle(
    boxes: Boxes, world: World, terminal: TerminalSize | None
) -> None:
    await boxes()
    codes: list[int] = []
    refused: list[GuestError] = []

    async def run() -> None:
        try:
            async with world.driver.process("box", ExecSpec(argv=("sleep", "1000"), terminal=terminal)) as process:
                codes.append(await process.wait())
        except GuestError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(run)
            if number == 10:
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                world.kill_init("box")
    assert set(codes) <= {137}
    assert len(codes) + len(refused) == 20
    assert [error for error in refused if not isinstance(error, UnavailableError)] == []


@pytest.mark.parametrize("how", ["stop", "destroy"])
async def test_processes_that_are_being_started_while_their_sandbox_ends_are_killed_or_refused(
    boxes: Boxes, world: World, how: str
) -> None:
    await boxes()
    answers: list[object] = []

    async def run() -> None:
        try:
            async with world.driver.process("box", ExecSpec(argv=("sleep", "1000"))) as process:
                answers.append(await process.wait())
        except UnavailableError as error:
            answers.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(run)
        for _ in range(30):
            await trio.lowlevel.checkpoint()
        await getattr(world.driver, how)("box")
    assert len(answers) == 10
    assert {answer for answer in answers if not isinstance(answer, UnavailableError)} <= {137}


AGENT = """
import sys, trio
from pathlib import Path
from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Spec
from arcbox_guest.sandboxes.oci.driver import OciDriver

async def main():
    driver = OciDriver(Path(sys.argv[1]), sys.argv[3])
    for name in ("a", "b"):
        await driver.create(Spec(id=name, rootfs=sys.argv[2], limits=ResourceLimits(vcpus=1, memory_mib=64)))
    async with driver.process("a", ExecSpec(argv=("sh", "-c", "setsid sleep 1000 & echo up; cat"))) as process:
        await process.stdout.receive()
        print("up", flush=True)
        await process.wait()

trio.run(main)
"""


async def test_what_a_killed_agent_left_is_found_and_removed(world: World, tmp_path: Path) -> None:
    data = tmp_path / "former"
    command = [sys.executable, "-c", AGENT, str(data), world.rootfs, world.driver.runtime]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:  # noqa: ASYNC220, S603  it is to be killed
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"up\n"
        agent.kill()
    world.driver.data_dir = data
    world.driver._cgroup = OciDriver(data)._cgroup
    assert any(left.startswith("process") for left in world.leftovers())
    assert await world.driver.existing() == ["a", "b"]
    for name in ("a", "b"):
        await world.driver.destroy(name)
    assert await world.driver.existing() == []
    assert world.leftovers() == []


async def test_a_driver_that_is_closed_leaves_no_thread_and_no_file_open(world: World) -> None:
    async def once() -> None:
        driver = OciDriver(world.driver.data_dir.with_name("again"))
        await driver.create(Spec(id="box", rootfs=world.rootfs, limits=ResourceLimits(vcpus=1, memory_mib=64)))
        async with driver.process("box", ExecSpec(argv=("cat",))) as process:
            await process.close_stdin()
            assert await process.wait() == 0
        await driver.destroy("box")
        await driver.close()

    await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await once()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_sandbox_goes_on_when_its_driver_is_closed(boxes: Boxes, world: World) -> None:
    await boxes()
    init = world.init("box")
    await world.driver.close()
    os.kill(init, 0)
    await world.driver.destroy("box")
    assert world.leftovers() == []


async def test_fifty_processes_at_once_each_get_their_own_input_and_output(boxes: Boxes, world: World) -> None:
    await boxes(memory_mib=1024)  # runc needs some 10 MiB for each while it starts it

    async def run(number: int) -> None:
        async with world.driver.process("box", ExecSpec(argv=("cat",))) as process:
            text = f"{number}\n".encode() * 2000
            await process.send_stdin(text)
            await process.close_stdin()
            received = b""
            while piece := await process.stdout.receive():
                received += piece
            assert received == text
            assert await process.wait() == 0

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(run, number)


async def test_many_terminals_at_once_are_each_their_own(boxes: Boxes, world: World) -> None:
    await boxes(memory_mib=512)

    async def run(number: int) -> None:
        command = ExecSpec(argv=("sh", "-c", f"echo {number}; cat"), terminal=TerminalSize())
        async with world.driver.process("box", command) as process:
            await _until(process, f"{number}\r\n".encode())
            await process.close_stdin()
            assert await process.wait() == 0

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(run, number)


async def test_ctrl_c_on_a_terminal_ends_the_job_in_the_foreground_and_not_the_shell(
    boxes: Boxes, world: World
) -> None:
    await boxes()
    command = ExecSpec(argv=("sh", "-i"), env={"PS1": "> "}, terminal=TerminalSize())
    async with world.driver.process("box", command) as process:
        # The job itself says that it is in the foreground: before that, Ctrl-C would be the shell's.
        await process.send_stdin(b"sh -c 'echo re\"\"ady; exec sleep 1000'\n")
        await _until(process, b"ready\r\n")
        await process.send_stdin(b"\x03echo $? st''ill\n")
        await _until(process, b"still\r\n> ")  # before it reads its next line, the shell would take Ctrl-D for a NUL
        await process.close_stdin()
        assert await process.wait() == 0


async def _until(process: Process, text: bytes) -> None:
    seen = b""
    while text not in seen:
        piece = bytes(await process.stdout.receive())
        assert piece, seen
        seen += piece


async def test_a_process_is_told_when_its_window_changes(boxes: Boxes, world: World) -> None:
    await boxes()
    script = "trap 'stty size' WINCH; echo up; while :; do read line; done"
    async with world.driver.process("box", ExecSpec(argv=("sh", "-c", script), terminal=TerminalSize())) as process:
        await _until(process, b"up\r\n")
        process.resize(TerminalSize(columns=132, rows=43))
        await process.send_stdin(b"\n")
        await _until(process, b"43 132")


async def test_processes_that_have_ended_leave_no_cgroup_in_a_sandbox_that_goes_on(boxes: Boxes, world: World) -> None:
    def left() -> list[str]:
        return [path.name for path in world.driver._live["box"].cgroups.processes.iterdir() if path.is_dir()]

    box = await boxes()
    for _ in range(3):
        await box.run("true")
    assert left() == []
    await box.sh("sleep 1000 >/dev/null 2>&1 & true")
    assert len(left()) == 1
    await box.run("killall", "sleep")
    await world.driver.idle("box")
    await box.run("true")
    assert left() == []


async def test_orphans_are_reaped(boxes: Boxes, world: World) -> None:
    box = await boxes()
    await box.sh("for i in 1 2 3 4 5; do (sleep 0 &) ; done >/dev/null 2>&1")
    with trio.fail_after(10):
        await world.driver.idle("box")
    assert (await world.driver.statistics("box")).processes == 1
