"""`arcboxctl sandbox run -d`, `attach` and `logs -f` with a real agent behind them, on a pipe and on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.client.terminal import on_a_terminal

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine


def arcboxctl(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "arcbox_client.cli", "sandbox", *arguments]


def environment(machine: Machine) -> dict[str, str]:
    assert machine.agent is not None
    return {"ARCBOX_CONNECT": machine.agent.address}


async def start(machine: Machine, *arguments: str) -> str:
    """`run -d`; the id that it writes."""
    env = {**os.environ, **environment(machine)}
    done = await trio.run_process(arcboxctl("run", "-d", *arguments), env=env, capture_stdout=True)
    return done.stdout.decode().strip()


async def test_what_was_started_is_attached_to_by_pipes_and_its_exit_code_is_that_of_attach(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "box")
    name = await start(machine, "-i", "box", "sh", "-c", "echo up; echo bad >&2; cat; exit 5")
    attach = partial(trio.run_process, env={**os.environ, **environment(machine)}, capture_stdout=True)
    done = await attach(arcboxctl("attach", "box", name), stdin=b"typed", capture_stderr=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"up\ntyped", b"bad\n")
    again = await attach(arcboxctl("attach", "--no-stdin", "box", name), check=False)
    assert (again.returncode, again.stdout) == (5, b"up\ntyped")
    assert name.encode() in (await attach(arcboxctl("ps", "box"))).stdout


async def test_logs_follow_what_runs_until_it_ends(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box")
    name = await start(machine, "-i", "box", "sh", "-c", "echo first; cat; echo last")
    follow = partial(
        trio.run_process,
        arcboxctl("logs", "-f", "box", name),
        stdout=subprocess.PIPE,
        env={**os.environ, **environment(machine)},
    )
    execution = client.sandbox_handle("box").execution(name)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(follow)
            assert process.stdout is not None
            assert await process.stdout.receive_some() == b"first\n"
            await execution.write_stdin(b"then\n")
            assert await process.stdout.receive_some() == b"then\n"
            await execution.close_stdin()
            assert b"".join([piece async for piece in process.stdout]) == b"last\n"
    until_now = await trio.run_process(
        arcboxctl("logs", "box", name), env={**os.environ, **environment(machine)}, capture_stdout=True
    )
    assert until_now.stdout == b"first\nthen\nlast\n"


async def test_a_terminal_is_left_by_its_keys_and_attached_to_again(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box")
    name = await start(machine, "-it", "box", "env", "PS1=$ ", "sh")
    with trio.fail_after(30):
        async with on_a_terminal(arcboxctl("attach", "box", name), environment(machine)) as terminal:
            await terminal.until_shown(b"$ ")
            terminal.type(b"echo $((6 * 7))\r")
            await terminal.until_shown(b"42\r\n")
            terminal.type(b"\x10\x11")
            assert await terminal.exit_code() == 0
            assert not terminal.is_raw
        async with on_a_terminal(arcboxctl("attach", "box", name), environment(machine), columns=77) as terminal:
            await terminal.until_shown(b"42\r\n")
            terminal.type(b"until stty size | grep ' 77$'; do :; done; exit 6\r")
            assert await terminal.exit_code() == 6
