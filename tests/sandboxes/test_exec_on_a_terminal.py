"""`arcboxctl sandbox exec -it` on a terminal, with a real sandbox behind it."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

from tests.client.terminal import on_a_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_client import AgentClient
    from tests.client.terminal import Terminal
    from tests.sandboxes.conftest import Machine

SHELL = ("env", "PS1=$ ", "sh")


@asynccontextmanager
async def attached(machine: Machine, client: AgentClient, *command: str) -> AsyncIterator[Terminal]:
    """Somebody who has just typed `arcboxctl sandbox exec -it box COMMAND`."""
    await machine.ready(client, "box")
    assert machine.agent is not None
    arcboxctl = [sys.executable, "-m", "arcbox_client.cli", "sandbox", "exec", "-it", "box", *command]
    with trio.fail_after(30):
        async with on_a_terminal(arcboxctl, {"ARCBOX_CONNECT": machine.agent.address}, columns=91, rows=33) as terminal:
            yield terminal


async def until_state(client: AgentClient, state: str) -> None:
    while (await client.sandbox_inspect("box")).state != state:  # noqa: ASYNC110  the agent is not in here
        await trio.sleep(0.01)


async def test_a_shell_is_as_if_it_ran_here(machine: Machine, client: AgentClient) -> None:
    async with attached(machine, client, *SHELL) as terminal:
        await terminal.until_shown(b"$ ")
        assert terminal.is_raw
        terminal.type(b"stty size; tty; echo $((6 * 7))\r")
        await terminal.until_shown(b"33 91\r\n/dev/pts/0\r\n42\r\n")
        terminal.resize(101, 44)
        terminal.type(b"until stty size | grep '^44'; do :; done\r")
        await terminal.until_shown(b"44 101\r\n")
        terminal.type(b"exit 7\r")
        assert await terminal.exit_code() == 7
        assert not terminal.is_raw


async def test_ctrl_c_ends_what_runs_in_front_and_not_the_shell(machine: Machine, client: AgentClient) -> None:
    async with attached(machine, client, *SHELL) as terminal:
        await terminal.until_shown(b"$ ")
        terminal.type(b"sh -c 'echo in \"\"front; exec sleep 1000'\r")
        await terminal.until_shown(b"in front\r\n")
        terminal.type(b"\x03")
        await terminal.until_shown(b"^C")
        terminal.type(b"echo status $?\r")
        await terminal.until_shown(b"status 130\r\n")
        terminal.type(b"\x04")
        assert await terminal.exit_code() == 0


async def test_ctrl_d_ends_what_reads(machine: Machine, client: AgentClient) -> None:
    async with attached(machine, client, "sh", "-c", "echo reads; cat; echo over") as terminal:
        await terminal.until_shown(b"reads\r\n")
        terminal.type(b"line\r\x04")
        await terminal.until_shown(b"line\r\nline\r\nover\r\n")
        assert await terminal.exit_code() == 0


async def test_who_leaves_it_running_comes_back_to_the_shell(machine: Machine, client: AgentClient) -> None:
    async with attached(machine, client, "sh", "-c", "echo up; exec sleep 1000") as terminal:
        await terminal.until_shown(b"up\r\n")
        terminal.type(b"\x10\x11")
        assert await terminal.exit_code() == 0
        assert not terminal.is_raw
        await terminal.until_shown(b"to end it, end that")
        found = re.search(rb"detached: process (\d+) of", terminal.shown)
        assert found is not None
        keeper = psutil.Process(int(found[1]))
        try:
            assert (await client.sandbox_inspect("box")).state == "running"
            assert keeper.terminal() is None
        finally:
            keeper.terminate()
        await until_state(client, "ready")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_an_arcboxctl_that_is_killed_takes_the_process_with_it(
    machine: Machine, client: AgentClient, number: signal.Signals
) -> None:
    async with attached(machine, client, "sh", "-c", "trap '' HUP TERM; echo up; sleep 1000") as terminal:
        await terminal.until_shown(b"up\r\n")
        terminal.process.send_signal(number)
        assert await terminal.exit_code() in (-number, 130)
        assert terminal.is_raw == (number == signal.SIGKILL)  # which nobody can do anything about
        await until_state(client, "ready")


async def test_an_agent_that_dies_is_told_in_one_line_on_a_terminal_that_works_again(
    machine: Machine, client: AgentClient
) -> None:
    async with attached(machine, client, "sh", "-c", "echo up; sleep 1000") as terminal:
        await terminal.until_shown(b"up\r\n")
        machine.process.kill()
        assert await terminal.exit_code() == 125
        assert not terminal.is_raw
        await terminal.until_shown(b"\r\n", after=b"arcboxctl: ")
        assert terminal.shown.count(b"\r\n") == 2
    with machine.running():
        async with machine.client() as another:
            await another.sandbox_remove("box", force=True)
