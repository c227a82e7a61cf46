"""How processes are started, ended and let go of."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest
import trio

from arcbox_guest.child import Child
from arcbox_guest.sandboxes.model import ExecSpec, TerminalSize
from arcbox_guest.sandboxes.oci.exec import ConsoleSocket, ExecProcess, ExecRequest
from arcbox_guest.sandboxes.oci.streams import StreamEnd

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_guest.sandboxes.driver import Process
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup
    from tests.guest.sandboxes.oci.conftest import Boxes, World


class Witness:
    """In place of a process's group: sees whether a file is still open when it has to kill the process."""

    def __init__(self, fd: int) -> None:
        self.was_open: bool | None = None
        self._fd = fd

    def kill(self) -> None:
        self.was_open = False
        with suppress(OSError):
            os.fstat(self._fd)
            self.was_open = True


@pytest.mark.parametrize("count", [1, 3])  # the master of a terminal, or pipes
async def test_a_process_that_is_left_is_killed_before_it_sees_the_end_of_its_stdin(count: int) -> None:
    files = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    configuration = os.open(os.devnull, os.O_RDWR)
    witness = Witness(files[0])
    request = ExecRequest(
        argv=lambda _configuration: [],
        configuration=b"",
        group=cast("ProcessGroup", witness),
        has_started=lambda: True,
        sandbox_is_ending=lambda: False,
    )
    child = Child.start(["sleep", "1000"])
    process = ExecProcess(request, child, StreamEnd(configuration), None, [StreamEnd(file) for file in files])
    if count == 1:
        process._have_terminal(os.dup(files[0]))
        for file in files[1:]:
            os.close(file)
    assert witness.was_open is None
    await process.close()
    assert witness.was_open
    if count == 1:
        os.close(files[0])


async def test_a_terminal_is_found_though_its_client_has_ended_already(tmp_path: Path) -> None:
    """Where it waits is the backlog of the socket: nobody has accepted the connection."""
    console = ConsoleSocket.listen(str(tmp_path / "console"))
    send = "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
    send += "socket.send_fds(s, [b'x'], [os.openpty()[0]])"
    child = Child.start([sys.executable, "-c", send, str(tmp_path / "console")])
    try:
        assert await child.wait() == 0
        master = await console.receive(child)
        assert os.isatty(master)
        os.close(master)
    finally:
        console.close()
        with trio.move_on_after(10, shield=True):
            await child.close()


MEMFD = """
import os, sys
memory = os.memfd_create("jit", 0)
os.write(memory, open("/bin/busybox", "rb").read())
os.execv(f"/proc/self/fd/{memory}", ["cat"])
"""


async def test_a_process_that_executes_memory_is_not_taken_for_the_runtime(boxes: Boxes, world: World) -> None:
    await boxes(with_python=True, memory_mib=256)
    async with world.driver.process("box", ExecSpec(argv=(sys.executable, "-I", "-S", "-c", MEMFD))) as process:
        await process.send_stdin(b"it runs\n")
        assert bytes(await process.stdout.receive()) == b"it runs\n"
        cast("ExecProcess", process)._deadline = trio.current_time()  # a runtime that still ran now would hang
        with trio.move_on_after(0.1):
            await process.wait()
        await process.send_stdin(b"and goes on\n")
        assert bytes(await process.stdout.receive()) == b"and goes on\n"


async def everything(process: Process) -> bytes:
    seen = b""
    while piece := bytes(await process.stdout.receive()):
        seen += piece
    return seen


async def test_short_commands_on_terminals_all_succeed_several_at_a_time(
    boxes: Boxes, world: World, technique: str
) -> None:
    await boxes(memory_mib=512)
    rounds = 10 if technique == "crun" else 3  # runc takes four times as long

    async def run(count: int) -> None:
        for _ in range(count):
            async with world.driver.process("box", ExecSpec(argv=("echo", "it"), terminal=TerminalSize())) as process:
                assert await process.wait() == 0
                assert await everything(process) == b"it\r\n"

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(run, rounds)


async def test_input_on_a_terminal_ends_after_half_a_line_too(boxes: Boxes, world: World) -> None:
    await boxes()
    command = ExecSpec(argv=("sh", "-c", "stty -echo; echo ready; cat >/got"), terminal=TerminalSize())
    for typed in (b"", b"a line\n", b"half a line", b"a line\nand half", b"more\x04", b"gone\x15"):
        async with world.driver.process("box", command) as process:
            assert bytes(await process.stdout.receive()) == b"ready\r\n"
            await process.send_stdin(typed)
            await process.close_stdin()
            with trio.fail_after(20):
                assert await process.wait() == 0, typed


async def test_the_end_of_input_is_one_byte_where_bytes_are_all_that_counts(boxes: Boxes, world: World) -> None:
    await boxes()
    script = "stty raw -echo; echo ready; head -c 3 | od -An -tx1; stty -g >/dev/null"
    async with world.driver.process("box", ExecSpec(argv=("sh", "-c", script), terminal=TerminalSize())) as process:
        assert bytes(await process.stdout.receive()).startswith(b"ready")
        await process.send_stdin(b"ab")
        await process.close_stdin()
        assert (await everything(process)).split() == [b"61", b"62", b"04"]


async def test_an_interactive_shell_ends_when_its_sandbox_is_asked_to(boxes: Boxes, world: World) -> None:
    await boxes()
    command = ExecSpec(argv=("sh", "-i"), env={"PS1": "> "}, terminal=TerminalSize())
    async with world.driver.process("box", command) as process:
        await process.stdout.receive()  # its prompt: it ignores SIGTERM from before that on
        await world.driver.terminate("box")
        with trio.fail_after(20):
            await world.driver.idle("box")
        assert await process.wait() == 129


async def test_what_ends_in_its_own_time_on_a_terminal_has_it(boxes: Boxes, world: World) -> None:
    await boxes()
    script = "trap 'sleep 0.2; echo in order; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    async with world.driver.process("box", ExecSpec(argv=("sh", "-c", script), terminal=TerminalSize())) as process:
        await process.stdout.receive()
        await world.driver.terminate("box")
        assert await process.wait() == 3
        assert b"in order" in await everything(process)
