"""arcboxctl sandbox on a terminal where somebody types: exec -it above all, and the tables and the spinner."""

from __future__ import annotations

import os
import re
import signal
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_protocol import ErrorReply, MessageType, arcbox_v1, sandbox_v1

if TYPE_CHECKING:
    from arcbox_client.testing import FakeAgent
    from tests.client.sandbox.conftest import Cli, Guest
    from tests.client.terminal import Terminal

T = MessageType
ATTACH = ["exec", "-it", "box", "sh"]


async def attached(terminal: Terminal, guest: Guest) -> None:
    """Wait until the process has the terminal."""
    await guest.started.wait()
    await guest.say(b"# ")
    await terminal.until_shown(b"# ")
    assert terminal.is_raw


async def test_the_process_gets_a_terminal_of_the_windows_size(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH, columns=120, rows=40) as terminal:
        await attached(terminal, guest)
        assert guest.start == sandbox_v1.ExecRequest(
            id="box", cmd=["sh"], tty=True, tty_size=sandbox_v1.TerminalSize(width=120, height=40)
        )


async def test_keys_go_to_the_process_as_they_are_typed_and_output_is_shown_as_it_comes(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        await attached(terminal, guest)
        terminal.type(b"ls\r\t\x1b[A\x7f\xc3\xa4")
        await guest.got(b"ls\r\t\x1b[A\x7f\xc3\xa4")
        await guest.say(b"a\nb\r\n\x1b[1mbold")
        await terminal.until_shown(b"a\nb\r\n\x1b[1mbold")
        assert b"ls" not in terminal.shown


async def test_ctrl_c_ctrl_z_and_ctrl_backslash_go_to_the_process(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        await attached(terminal, guest)
        terminal.type(b"\x03\x1a\x1c\x04")
        await guest.got(b"\x03\x1a\x1c\x04")
        assert not guest.stdin_ended
        await guest.exit(130)
        assert await terminal.exit_code() == 130


@pytest.mark.parametrize("code", [0, 3, 137])
async def test_the_exit_code_is_the_processs_and_the_terminal_is_as_it_was(cli: Cli, guest: Guest, code: int) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await attached(terminal, guest)
        assert terminal.modes != before
        await guest.exit(code)
        assert await terminal.exit_code() == code
        assert terminal.modes == before


async def test_the_size_follows_the_window(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        await attached(terminal, guest)
        await guest.resized(100, 30)
        for columns, rows in [(101, 31), (20, 5)]:
            terminal.resize(columns, rows)
            await guest.resized(columns, rows)


async def test_the_terminal_is_restored_when_the_agent_refuses(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await guest.started.wait()
        await guest.refuse(ErrorReply(404, "there is no sandbox 'box'"))
        await terminal.until_shown(b"arcboxctl: SandboxExecRequest: there is no sandbox 'box' (404)\r\n")
        assert await terminal.exit_code() == 125
        assert terminal.modes == before


async def test_the_terminal_is_restored_when_the_connection_is_lost(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await attached(terminal, guest)
        await guest._agent.close()
        await terminal.until_shown(b"arcboxctl: no connection to unix:")
        assert await terminal.exit_code() == 125
        assert terminal.modes == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
async def test_the_terminal_is_restored_when_a_signal_ends_arcboxctl(
    cli: Cli, guest: Guest, number: signal.Signals
) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await attached(terminal, guest)
        terminal.process.send_signal(number)
        assert await terminal.exit_code() == -number
        assert terminal.modes == before
        await guest.gone.wait()


async def test_the_terminal_is_restored_when_it_is_interrupted(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await attached(terminal, guest)
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.exit_code() == 130
        assert terminal.modes == before


async def test_after_a_stop_the_terminal_is_raw_again(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await attached(terminal, guest)
        terminal.process.send_signal(signal.SIGSTOP)
        termios.tcsetattr(terminal._slave, termios.TCSANOW, before)  # as a shell does with whoever stops
        terminal.process.send_signal(signal.SIGCONT)
        terminal.type(b"x")  # on a terminal that is not raw, it would wait for the end of the line
        await guest.got(b"x")
        assert terminal.is_raw


async def test_the_detach_keys_leave_it_running_and_give_the_shell_back(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        before = terminal.modes
        await attached(terminal, guest)
        terminal.type(b"sleep 9\r\x10\x11")
        await terminal.until_shown(b"of this machine keeps it running")
        keeper = int(terminal.shown.split(b"detached: process ")[1].split()[0])
        try:
            assert await terminal.exit_code() == 0
            assert terminal.modes == before
            await guest.got(b"sleep 9\r")
            shown = terminal.shown
            await guest.say(b"for nobody" * 100_000)
            assert not guest.gone.is_set()
            await guest.exit(0)
            await guest.gone.wait()
            assert terminal.shown == shown
        finally:
            with suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGKILL)


async def test_whoever_stays_behind_ends_the_process_when_it_is_ended(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        await attached(terminal, guest)
        terminal.type(b"\x10\x11")
        await terminal.until_shown(b"of this machine keeps it running")
        os.kill(int(terminal.shown.split(b"detached: process ")[1].split()[0]), signal.SIGTERM)
        await guest.gone.wait()


async def test_what_is_not_the_whole_detach_sequence_goes_to_the_process(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal(*ATTACH) as terminal:
        await attached(terminal, guest)
        for keys in (b"\x10", b"a", b"\x11", b"\x10\x10", b"b"):
            terminal.type(keys)
        await guest.got(b"\x10a\x11\x10\x10b")


@pytest.mark.parametrize("option", ["", "ctrl-a,d"])
async def test_the_detach_keys_can_be_others_or_none(cli: Cli, guest: Guest, option: str) -> None:
    async with cli.on_a_terminal("exec", "-it", "--detach-keys", option, "box", "sh") as terminal:
        await attached(terminal, guest)
        terminal.type(b"\x10\x11x")
        await guest.got(b"\x10\x11x")


async def test_a_terminal_without_input_leaves_this_one_alone(cli: Cli, guest: Guest) -> None:
    async with cli.on_a_terminal("exec", "-t", "box", "ls") as terminal:
        before = terminal.modes
        await guest.started.wait()
        await guest.say(b"colors")
        await terminal.until_shown(b"colors")
        assert terminal.modes == before
        assert guest.start is not None
        assert guest.start.tty
        await guest.got_the_end_of_stdin()
        terminal.resize(50, 10)
        await guest.resized(50, 10)
        await guest.exit(2)
        assert await terminal.exit_code() == 2


async def test_ls_on_a_terminal_is_a_table(cli: Cli) -> None:
    async def answer(agent: FakeAgent) -> None:
        summary = sandbox_v1.SandboxSummary(id="box", state="ready", labels={"[red]": "x"})
        reply = sandbox_v1.ListSandboxesResponse(sandboxes=[summary])
        await agent.serve({T.SandboxListRequest: lambda _: reply})

    cli.listener.serve_agent(answer)
    async with cli.on_a_terminal("ls") as terminal:
        await terminal.until_shown("╰".encode())
        assert "╭" in terminal.shown.decode()
        assert "[red]=x" in terminal.shown.decode()


async def test_ls_on_a_terminal_keeps_ids_whole_and_leaves_out_columns_in_which_there_is_nothing(cli: Cli) -> None:
    name = "a928feb2-47b6-4086-aa22-822367984ed8"
    one = sandbox_v1.SandboxSummary(id=name, state="ready", labels={"a-label": "of-many-letters" * 4})
    cli.serve({T.SandboxListRequest: lambda _: sandbox_v1.ListSandboxesResponse(sandboxes=[one])})
    async with cli.on_a_terminal("ls", columns=80) as terminal:
        await terminal.until_shown("╯".encode())
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.shown.decode()).splitlines()
    assert name in lines[3]
    assert re.findall(r"[A-Z]+", lines[1]) == ["ID", "STATE", "AGE", "LABELS"]
    assert {len(line) for line in lines} == {80}


async def test_a_spinner_turns_while_a_sandbox_starts_and_leaves_only_the_id(cli: Cli) -> None:
    ready = trio.Event()

    async def answer(agent: FakeAgent) -> None:
        while True:
            request = await agent.receive()
            if request.type == T.SandboxEventsRequest:
                await agent.reply(await agent.receive(), arcbox_v1.AgentPingResponse())
                await ready.wait()
                await agent.reply(request, sandbox_v1.SandboxEvent(sandbox_id="box", action="ready"))
            elif request.type == T.SandboxCreateRequest:
                await agent.reply(request, sandbox_v1.CreateSandboxResponse(id="box", state="starting"))
            else:
                state = "ready" if ready.is_set() else "starting"
                await agent.reply(request, sandbox_v1.SandboxInfo(id="box", state=state))

    cli.serve_talk(answer)
    async with cli.on_a_terminal("create") as terminal:
        await terminal.until_shown(b"Starting the sandbox")
        ready.set()
        await terminal.until_shown(b"\x1b[2Kbox\r\n")
        assert await terminal.exit_code() == 0
