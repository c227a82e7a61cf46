"""arcboxctl sandbox run and exec without a terminal: what goes in, what comes out, and how it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_protocol import ErrorReply, MessageType, sandbox_v1

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_client.testing import FakeAgent
    from tests.client.sandbox.conftest import Cli

T = MessageType

ALL_BYTES = bytes(range(256)) * 1000


def ended(exit_code: int) -> sandbox_v1.RunOutput:
    return sandbox_v1.RunOutput(stream="exit", exit_code=exit_code, done=True)


async def test_run_passes_output_and_exit_code_on(cli: Cli) -> None:
    pieces = [
        sandbox_v1.RunOutput(stream="stdout", data=ALL_BYTES),
        sandbox_v1.RunOutput(stream="stderr", data=b"\xff\n"),
        sandbox_v1.RunOutput(stream="stdout", data=b"end"),
        ended(42),
    ]
    requests = cli.serve({T.SandboxRunRequest: lambda _: list(pieces)})
    options = ["-e", "A=b", "-w", "/w", "-u", "me", "--kill-after", "90"]
    result = await cli.sandbox("run", *options, "box", "--", "sh", "-c", "x", "--help")
    assert result == (42, ALL_BYTES + b"end", b"\xff\n")
    assert requests[0].message == sandbox_v1.RunRequest(
        id="box", cmd=["sh", "-c", "x", "--help"], env={"A": "b"}, working_dir="/w", user="me", timeout_seconds=90
    )


async def test_the_command_needs_no_dashes_before_it(cli: Cli) -> None:
    requests = cli.serve({T.SandboxRunRequest: lambda _: [ended(0)]})
    assert (await cli.sandbox("run", "box", "ls", "-l", "--user", "x")).returncode == 0
    assert requests[0].message == sandbox_v1.RunRequest(id="box", cmd=["ls", "-l", "--user", "x"])


async def test_what_the_command_is_told_is_not_told_to_arcboxctl(cli: Cli) -> None:
    cli.serve({T.SandboxRunRequest: lambda _: [sandbox_v1.RunOutput(stream="stdout", data=b"{}"), ended(0)]})
    assert (await cli.sandbox("run", "box", "tool", "--json")).stdout == b"{}"


async def test_run_in_json_is_a_line_for_each_piece_and_one_for_the_end(cli: Cli) -> None:
    pieces = [sandbox_v1.RunOutput(stream="stderr", data=ALL_BYTES), ended(137)]
    cli.serve({T.SandboxRunRequest: lambda _: list(pieces)})
    result = await cli.sandbox("run", "--json", "box", "x")
    assert (result.returncode, result.stderr) == (137, b"")
    piece, end = map(json.loads, result.stdout.splitlines())
    assert (piece["stream"], base64.b64decode(piece["data"])) == ("stderr", ALL_BYTES)
    assert end == {"stream": "exit", "exit_code": 137}


async def test_why_a_process_was_killed_is_said_on_stderr(cli: Cli) -> None:
    cli.serve(
        {
            T.SandboxRunRequest: lambda _: [ended(137)],
            T.SandboxEventsRequest: lambda _: [],
            T.SandboxInspectRequest: lambda _: sandbox_v1.SandboxInfo(
                state="ready", error="oom: the limit was reached"
            ),
        }
    )
    assert await cli.sandbox("run", "box", "x") == (137, b"", b"arcboxctl: killed: out of memory (oom)\n")


async def test_a_process_that_can_not_be_started_is_one_line(cli: Cli) -> None:
    cli.serve({T.SandboxRunRequest: lambda _: ErrorReply(404, "there is no sandbox 'box'")})
    result = await cli.sandbox("run", "box", "x")
    assert result == (125, b"", b"arcboxctl: SandboxRunRequest: there is no sandbox 'box' (404)\n")


async def test_an_agent_that_goes_away_is_one_line_and_exit_code_125(cli: Cli) -> None:
    async def answer(agent: FakeAgent) -> None:
        await agent.receive()
        await agent.close()

    cli.serve_talk(answer)
    result = await cli.sandbox("run", "box", "x")
    assert result.returncode == 125
    assert result.stderr.startswith(b"arcboxctl: no connection to unix:")
    assert result.stderr.count(b"\n") == 1


async def test_a_reader_that_has_enough_ends_run_quietly_as_it_ends_cat(cli: Cli) -> None:
    pieces = [sandbox_v1.RunOutput(stream="stdout", data=bytes(65536))] * 100 + [ended(0)]
    cli.serve({T.SandboxRunRequest: lambda _: list(pieces)})
    async with cli.running("run", "box", "x") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(10)
        await process.stdout.aclose()
        assert await process.stderr.receive_some() == b""
    assert process.returncode == -signal.SIGPIPE


async def echo(agent: FakeAgent) -> None:
    """An agent whose processes say back what they read, and end with 7 at the end of their stdin."""
    start = await agent.receive()
    while (request := await agent.receive()).payload:
        await agent.reply(start, sandbox_v1.ExecOutput(stream="stdout", data=request.payload))
    await agent.reply(start, sandbox_v1.ExecOutput(stream="exit", exit_code=7, done=True))
    await agent.receive()


async def test_exec_sends_stdin_and_its_end_byte_for_byte(cli: Cli) -> None:
    cli.serve_talk(echo)
    assert await cli.sandbox("exec", "-i", "box", "cat", stdin=ALL_BYTES) == (7, ALL_BYTES, b"")


async def test_exec_without_i_has_an_empty_stdin(cli: Cli) -> None:
    cli.serve_talk(echo)
    assert await cli.sandbox("exec", "box", "cat", stdin=b"not for it") == (7, b"", b"")


async def test_exec_takes_stdin_from_a_file(cli: Cli, directory: Path) -> None:
    cli.serve_talk(echo)
    (directory / "input").write_bytes(ALL_BYTES)
    with (directory / "input").open("rb") as source:
        done = await trio.run_process(
            [*cli.command, "exec", "-i", "box", "cat"],
            env=cli.environment(),
            stdin=source,
            capture_stdout=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (7, ALL_BYTES)


@pytest.mark.parametrize("closed", ["<&-", "</dev/null"])
async def test_exec_does_without_a_stdin(cli: Cli, closed: str) -> None:
    cli.serve_talk(echo)
    done = await trio.run_process(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *cli.command, "exec", "-i", "box", "cat"],
        env=cli.environment(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


async def test_a_stdin_that_can_not_be_read_is_one_line_and_ends_there(cli: Cli, directory: Path) -> None:
    cli.serve_talk(echo)
    stdin = os.open(directory / "output", os.O_WRONLY | os.O_CREAT)
    try:
        done = await trio.run_process(
            [*cli.command, "exec", "-i", "box", "cat"],
            env=cli.environment(),
            stdin=stdin,
            capture_stderr=True,
            check=False,
        )
    finally:
        os.close(stdin)
    assert (done.returncode, done.stderr) == (7, b"arcboxctl: cannot read stdin: bad file descriptor\n")


async def test_output_for_a_stdout_that_is_closed_goes_nowhere(cli: Cli) -> None:
    pieces = [sandbox_v1.RunOutput(stream="stdout", data=ALL_BYTES), ended(5)]
    cli.serve({T.SandboxRunRequest: lambda _: list(pieces)})
    done = await trio.run_process(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *cli.command, "run", "box", "x"],
        env=cli.environment(),
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (5, b"")


async def test_a_process_may_end_while_there_is_more_stdin(cli: Cli) -> None:
    async def end(agent: FakeAgent) -> None:
        start = await agent.receive()
        await agent.reply(start, sandbox_v1.ExecOutput(stream="exit", exit_code=3, done=True))
        await agent.receive()

    cli.serve_talk(end)
    ours, theirs = os.pipe()
    try:
        done = await trio.run_process(
            [*cli.command, "exec", "-i", "box", "true"], env=cli.environment(), stdin=ours, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 3


async def test_ctrl_c_without_a_terminal_ends_exec_and_its_connection(cli: Cli) -> None:
    gone = trio.Event()

    async def answer(agent: FakeAgent) -> None:
        start = await agent.receive()
        await agent.reply(start, sandbox_v1.ExecOutput(stream="stdout", data=b"running"))
        assert (await agent.receive()).payload == b""
        try:
            await agent.receive()
        finally:
            gone.set()

    cli.serve_talk(answer)
    async with cli.running("exec", "box", "sleep", "9") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some() == b"running"
        process.send_signal(signal.SIGINT)
        assert await process.stderr.receive_some() == b""
    assert process.returncode == 130
    await gone.wait()
