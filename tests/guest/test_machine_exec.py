"""Processes on the machine itself: real ones, in sessions of their own."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from arcbox_guest.errors import InvalidArgumentError, NotSupportedError
from arcbox_guest.machine_exec import CommandFailedError, MachineCommand, MachineExec
from arcbox_guest.sandboxes.model import TerminalSize

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_guest.sandboxes.driver import OutputStream

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's processes are root's to start")


async def everything(output: OutputStream) -> bytes:
    received = bytearray()
    while piece := await output.receive():
        received += piece
    return bytes(received)


async def run(*argv: str, stdin: bytes | None = b"", **options: Any) -> tuple[int, bytes, bytes]:  # noqa: ANN401  what attrs takes
    """Run a command to its end: exit code, stdout, stderr."""
    command = MachineCommand(argv=argv, **options)
    with trio.fail_after(30):
        async with MachineExec(enabled=True).process(command) as process:
            if stdin is not None:
                await process.send_stdin(stdin)
                await process.close_stdin()
            out = await everything(process.stdout)
            err = await everything(process.stderr) if process.stderr is not None else b""
            return await process.wait(), out, err


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123  a look at /proc
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_a_command_has_stdin_stdout_stderr_and_an_exit_code() -> None:
    assert await run("sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in\n") == (7, b"in\n", b"err\n")


async def test_its_environment_is_its_own_and_its_directory_as_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the agent")
    code, out, _ = await run("sh", "-c", "pwd; env", working_dir=str(tmp_path), env={"LANG": "C.UTF-8"})
    directory, *lines = out.decode().splitlines()
    assert (code, directory) == (0, str(tmp_path))
    env = dict(line.split("=", 1) for line in lines)
    assert (env["HOME"], env["USER"], env["LANG"]) == ("/root", "root", "C.UTF-8")
    assert "SECRET" not in env


@pytest.mark.parametrize(
    ("argv", "options", "code", "text"),
    [
        (("no-such-command",), {}, 127, "no-such-command: command not found"),
        (("/no/such",), {}, 127, "/no/such: command not found"),
        (("/etc",), {}, 126, "/etc: can't be executed"),
        (("/etc/passwd",), {}, 126, "/etc/passwd: can't be executed"),
        (("true",), {"working_dir": "/no/such"}, 126, "/no/such: No such directory"),
        (("no-such-command",), {"terminal": TerminalSize()}, 127, "no-such-command: command not found"),
    ],
)
async def test_a_command_that_can_not_be_run_ends_as_in_a_shell(
    argv: tuple[str, ...], options: dict[str, Any], code: int, text: str
) -> None:
    with pytest.raises(CommandFailedError, match=text) as failure:
        await run(*argv, **options)
    assert failure.value.exit_code == code


@pytest.mark.parametrize("command", [{"argv": ()}, {"argv": ("a\0b",)}, {"argv": ("true",), "user": "nobody-here"}])
async def test_what_is_no_command_is_refused(command: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        async with MachineExec(enabled=True).process(MachineCommand(**command)):
            pass


async def test_nothing_is_run_where_the_settings_forbid_it() -> None:
    with pytest.raises(NotSupportedError, match="allow_exec"):
        async with MachineExec(enabled=False).process(MachineCommand(argv=("true",))):
            pass


@needs_root
@pytest.mark.parametrize(
    ("user", "ids"), [("nobody", "65534 65534"), ("65534", "65534 65534"), ("12345:54321", "12345 54321")]
)
async def test_a_command_runs_as_the_user_that_was_asked_for(user: str, ids: str) -> None:
    code, out, _ = await run("sh", "-c", 'echo "$(id -u) $(id -g)"; id -G', user=user)
    first, groups = out.decode().splitlines()
    assert (code, first) == (0, ids)
    assert "0" not in groups.split()


async def test_a_login_shell_reads_the_profile_and_runs_the_command_as_it_is() -> None:
    code, out, _ = await run("printf", "%s|", "a b", "$HOME", login=True)
    assert (code, out) == (0, b"a b|$HOME|")
    code, out, _ = await run(stdin=b"echo as a shell; exit 3\n", login=True)
    assert (code, out) == (3, b"as a shell\n")


async def test_a_terminal_is_the_controlling_one_and_has_a_size() -> None:
    script = "tty; stty size; read x; stty size; exit 5"
    command = MachineCommand(argv=("sh", "-c", script), terminal=TerminalSize(100, 30))
    with trio.fail_after(30):
        async with MachineExec(enabled=True).process(command) as process:
            said = bytearray()
            while said.count(b"\n") < 2:
                said += await process.stdout.receive()
            process.resize(TerminalSize(50, 20))
            await process.send_stdin(b"\r")
            said += await everything(process.stdout)
            assert await process.wait() == 5
    tty, size, _echo, resized = said.decode().split("\r\n")[:4]
    assert tty.startswith("/dev/pts/")
    assert (size, resized) == ("30 100", "20 50")


async def test_control_c_on_the_terminal_interrupts_what_runs_there() -> None:
    command = MachineCommand(argv=("sh", "-c", "echo up; exec sleep 1000"), terminal=TerminalSize())
    with trio.fail_after(30):
        async with MachineExec(enabled=True).process(command) as process:
            assert await process.stdout.receive()
            await process.send_stdin(b"\x03")
            await everything(process.stdout)
            assert (await process.wait(), process.killed_by) == (128 + signal.SIGINT, signal.SIGINT)


@pytest.mark.parametrize("terminal", [None, TerminalSize()])
async def test_when_its_context_is_left_the_whole_session_is_killed(terminal: TerminalSize | None) -> None:
    # Job control puts each of them into a process group of its own.
    script = "set -m; trap '' HUP TERM; sleep 1000 & echo $!; (trap '' HUP; sleep 1000) & echo $!; wait"
    command = MachineCommand(argv=("sh", "-c", script), terminal=terminal)
    said = bytearray()
    with trio.fail_after(30):
        async with MachineExec(enabled=True).process(command) as process:
            while said.count(b"\n") < 2:
                said += await process.stdout.receive()
            pids = [process.pid, *map(int, said.split())]
            assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))


async def test_a_start_that_is_cancelled_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from arcbox_guest import machine_exec  # noqa: PLC0415  for its `start`

    started: list[machine_exec.MachineProcess] = []
    begun, go_on, token = trio.Event(), trio.Event(), trio.lowlevel.current_trio_token()
    discarded = trio.Event()

    def start_late(command: MachineCommand) -> machine_exec.MachineProcess:
        token.run_sync_soon(begun.set)
        trio.from_thread.run(go_on.wait, trio_token=token)
        started.append(real(command))
        return started[0]

    def discard(process: machine_exec.MachineProcess) -> None:
        discard_really(process)
        token.run_sync_soon(discarded.set)

    real, discard_really = machine_exec.start, machine_exec.MachineProcess.discard
    monkeypatch.setattr(machine_exec.MachineProcess, "discard", discard)
    monkeypatch.setattr(machine_exec, "start", start_late)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def use() -> None:
                async with MachineExec(enabled=True).process(MachineCommand(argv=("sleep", "1000"))):
                    pytest.fail("nobody waits for it")

            nursery.start_soon(use)
            await begun.wait()
            nursery.cancel_scope.cancel()
        go_on.set()
        await discarded.wait()
    assert not is_alive(started[0].pid)
