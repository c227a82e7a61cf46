"""The contract of drivers: what a process in a sandbox sees, says and comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.model import ExecSpec, Spec, TerminalSize

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.driver import Driver, OutputStream, Process

MEGABYTE = 1_000_000


@pytest.fixture
async def sandbox(driver: Driver, spec: Spec) -> Driver:
    """The driver, with a sandbox that is called contract."""
    await driver.create(evolve(spec, env={"COLOR": "red", "SHAPE": "round"}))
    return driver


def shell(script: str) -> ExecSpec:
    return ExecSpec(argv=("sh", "-c", script))


async def everything(output: OutputStream) -> bytes:
    data = bytearray()
    while piece := await output.receive():
        data += piece
    return bytes(data)


async def line(output: OutputStream) -> bytes:
    """What a terminal shows up to the end of a line, which it may show by itself."""
    data = b""
    while not data.endswith(b"\n") and (piece := await output.receive()):
        data += piece
    return data


async def result(driver: Driver, command: ExecSpec) -> tuple[bytes, bytes, int]:
    """What a command writes to stdout and stderr, and its exit code."""
    async with driver.process("contract", command) as process:
        stdout = await everything(process.stdout)
        stderr = await everything(process.stderr) if process.stderr is not None else b""
        return stdout, stderr, await process.wait()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (ExecSpec(argv=("true",)), 0),
        (ExecSpec(argv=("false",)), 1),
        (shell("exit 7"), 7),
        (shell("kill -9 $$"), 137),
        (shell("kill -15 $$"), 143),
    ],
)
async def test_exit_codes_are_exact_and_128_more_than_a_signal(sandbox: Driver, command: ExecSpec, code: int) -> None:
    assert await result(sandbox, command) == (b"", b"", code)


async def test_stdout_and_stderr_are_apart(sandbox: Driver) -> None:
    assert await result(sandbox, shell("echo out; echo err >&2")) == (b"out\n", b"err\n", 0)


@pytest.mark.parametrize(("name", "code"), [("no-such-program", 127), ("/etc/passwd", 126)])
async def test_what_can_not_be_executed_is_told_as_a_shell_would(sandbox: Driver, name: str, code: int) -> None:
    stdout, stderr, exit_code = await result(sandbox, ExecSpec(argv=(name,)))
    assert (stdout, exit_code) == (b"", code)
    assert name.encode() in stderr
    assert stderr.count(b"\n") == 1
    command = ExecSpec(argv=(name,), terminal=TerminalSize())
    stdout, _, exit_code = await result(sandbox, command)
    assert name.encode() in stdout
    assert exit_code == code


async def test_input_arrives_whole_and_ends_where_it_is_closed(sandbox: Driver) -> None:
    data = bytes(range(256)) * 1000
    async with sandbox.process("contract", ExecSpec(argv=("cat",))) as process, trio.open_nursery() as nursery:

        async def feed() -> None:
            await process.send_stdin(data[:100])
            await process.send_stdin(data[100:])
            await process.close_stdin()
            await process.close_stdin()

        nursery.start_soon(feed)
        assert await everything(process.stdout) == data
        assert await process.wait() == 0


async def test_a_process_can_act_on_what_it_reads(sandbox: Driver) -> None:
    async with sandbox.process("contract", shell("read line; exit $line")) as process:
        await process.send_stdin(b"42\n")
        assert await process.wait() == 42


async def test_input_for_a_process_that_has_ended_is_refused(sandbox: Driver) -> None:
    async with sandbox.process("contract", ExecSpec(argv=("true",))) as process:
        await process.wait()
        with pytest.raises(trio.BrokenResourceError):
            await process.send_stdin(b"too late\n")
        await process.close_stdin()


async def test_a_process_that_does_not_read_lets_its_writer_wait(sandbox: Driver) -> None:
    async with sandbox.process("contract", ExecSpec(argv=("sleep", "1000"))) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.send_stdin, bytes(2 * MEGABYTE))
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            nursery.cancel_scope.cancel()
        await process.kill()
        assert await process.wait() == 137


async def test_a_process_whose_output_nobody_reads_waits_and_costs_no_memory(sandbox: Driver) -> None:
    async with sandbox.process("contract", ExecSpec(argv=("yes",))) as process:
        total = 0
        while total < 5 * MEGABYTE:
            piece = await process.stdout.receive()
            assert bytes(piece[:1]) in (b"y", b"\n")
            total += len(piece)
            assert len(piece) <= MEGABYTE
            assert process.stdout.unread() <= 2 * MEGABYTE
        await process.kill()
        assert await process.wait() == 137


async def test_output_that_was_written_before_the_end_can_be_read_after_it(sandbox: Driver) -> None:
    async with sandbox.process("contract", ExecSpec(argv=("echo", "last", "words"))) as process:
        assert await process.wait() == 0
        assert process.stdout.unread() == len(b"last words\n")
        assert await everything(process.stdout) == b"last words\n"
        assert process.stdout.unread() == 0
        assert await everything(process.stdout) == b""


async def test_any_number_of_tasks_may_wait_for_an_end(sandbox: Driver) -> None:
    codes: list[int] = []

    async def wait(process: Process) -> None:
        codes.append(await process.wait())

    async with sandbox.process("contract", shell("read line; exit $line")) as process:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, process)
            with trio.move_on_after(0):
                await process.wait()
            await process.send_stdin(b"5\n")
        await wait(process)
    assert codes == [5, 5, 5, 5]


async def test_kill_takes_the_whole_tree_even_what_has_a_session_of_its_own(sandbox: Driver) -> None:
    async with sandbox.process("contract", shell("setsid sleep 1000 >/dev/null 2>&1 & echo left; cat")) as process:
        assert bytes(await process.stdout.receive()) == b"left\n"
        await process.kill()
        assert await process.wait() == 137
        await process.kill()
        await sandbox.idle("contract")


async def test_leaving_before_the_end_kills_the_whole_tree(sandbox: Driver) -> None:
    async with sandbox.process("contract", shell("setsid sleep 1000 >/dev/null 2>&1 & echo left; cat")) as process:
        assert bytes(await process.stdout.receive()) == b"left\n"
    assert await process.wait() == 137
    await sandbox.idle("contract")


@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_a_caller_that_is_cancelled_at_any_moment_leaves_nothing_running(
    sandbox: Driver, checkpoints: int
) -> None:
    async def run() -> None:
        async with sandbox.process("contract", ExecSpec(argv=("sleep", "1000"))) as process:
            await process.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await sandbox.idle("contract")


async def test_what_a_process_leaves_behind_lives_on_and_may_hold_its_output(sandbox: Driver) -> None:
    async with sandbox.process("contract", shell("sleep 1000 & echo left; exit 3")) as process:
        assert await process.wait() == 3
        assert bytes(await process.stdout.receive()) == b"left\n"
        with trio.move_on_after(0.05) as patience:
            await process.stdout.receive()
        assert patience.cancelled_caught
    before = (await sandbox.statistics("contract")).processes
    await sandbox.terminate("contract")
    await sandbox.idle("contract")
    assert (await sandbox.statistics("contract")).processes < before


async def test_the_environment_is_the_sandboxs_and_then_the_commands_own_on_a_sane_path(sandbox: Driver) -> None:
    command = evolve(shell("echo $COLOR $SHAPE $PATH"), env={"COLOR": "blue"})
    output, errors, exit_code = await result(sandbox, command)
    assert (errors, exit_code) == (b"", 0)
    color, shape, path = output.split()
    assert (color, shape) == (b"blue", b"round")
    assert b"/bin" in path.split(b":")


async def test_a_working_directory_must_be_there(sandbox: Driver) -> None:
    assert await result(sandbox, ExecSpec(argv=("pwd",))) == (b"/\n", b"", 0)
    assert await result(sandbox, ExecSpec(argv=("pwd",), working_dir="/tmp")) == (b"/tmp\n", b"", 0)  # noqa: S108
    with pytest.raises(InvalidArgumentError, match="/not/there"):
        await result(sandbox, ExecSpec(argv=("pwd",), working_dir="/not/there"))


@pytest.mark.parametrize(("user", "uid"), [("", b"0"), ("root", b"0"), ("nobody", b"65534"), ("1234", b"1234")])
async def test_users_are_those_of_the_sandbox(sandbox: Driver, user: str, uid: bytes) -> None:
    assert await result(sandbox, ExecSpec(argv=("id", "-u"), user=user)) == (uid + b"\n", b"", 0)


async def test_a_user_who_is_not_there_is_the_callers_fault(sandbox: Driver) -> None:
    with pytest.raises(InvalidArgumentError, match="nemo"):
        await result(sandbox, ExecSpec(argv=("true",), user="nemo"))


async def test_what_the_sandbox_was_created_with_holds_where_a_command_says_nothing(driver: Driver, spec: Spec) -> None:
    await driver.create(evolve(spec, working_dir="/tmp", user="nobody"))  # noqa: S108
    assert (await result(driver, ExecSpec(argv=("pwd",))))[0] == b"/tmp\n"
    assert (await result(driver, ExecSpec(argv=("id", "-u"))))[0] == b"65534\n"
    assert (await result(driver, ExecSpec(argv=("id", "-u"), user="root")))[0] == b"0\n"


async def test_a_terminal_has_a_size_that_can_change(sandbox: Driver) -> None:
    command = evolve(shell("stty size; read line; stty size"), terminal=TerminalSize(columns=132, rows=50))
    async with sandbox.process("contract", command) as process:
        assert process.stderr is None
        assert await line(process.stdout) == b"50 132\r\n"
        process.resize(TerminalSize(columns=90, rows=30))
        await process.send_stdin(b"\n")
        assert (await everything(process.stdout)).endswith(b"30 90\r\n")
        assert await process.wait() == 0


async def test_a_terminals_end_of_input_is_seen(sandbox: Driver) -> None:
    async with sandbox.process("contract", ExecSpec(argv=("cat",), terminal=TerminalSize())) as process:
        await process.close_stdin()
        assert await process.wait() == 0


async def test_a_resize_without_a_terminal_does_nothing(sandbox: Driver) -> None:
    async with sandbox.process("contract", ExecSpec(argv=("cat",))) as process:
        process.resize(TerminalSize(columns=90, rows=30))
        await process.close_stdin()
        assert await process.wait() == 0
