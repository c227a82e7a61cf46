"""Processes with a terminal: its size at first and later, and its one stream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.sandboxes.model import TerminalSize
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from tests.handlers.sandboxes.conftest import Rig, Scripted

RUN, EXEC = MessageType.SandboxRunRequest, MessageType.SandboxExecRequest
INPUT, RESIZE = MessageType.SandboxExecInput, MessageType.SandboxExecResize


async def start(rig: Rig, **fields: Any) -> Scripted:  # noqa: ANN401  any field of the request
    """The program of an exec that was asked for just now."""
    await rig.sandboxes.create("box")
    program = rig.sandboxes.script("x")
    await rig.peer.send(EXEC, sandbox_v1.ExecRequest(id="box", cmd=["x"], **fields), trace_id="t")
    return program


async def resize(rig: Rig, width: int, height: int) -> None:
    await rig.peer.send(RESIZE, sandbox_v1.TerminalSize(width=width, height=height), trace_id="t")
    await wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("size", "terminal"),
    [
        (None, TerminalSize(80, 24)),
        (sandbox_v1.TerminalSize(), TerminalSize(80, 24)),
        (sandbox_v1.TerminalSize(width=132), TerminalSize(132, 24)),
        (sandbox_v1.TerminalSize(width=65535, height=1), TerminalSize(65535, 1)),
    ],
)
async def test_a_terminal_has_the_size_that_was_asked_for_or_80_by_24(
    rig: Rig, size: sandbox_v1.TerminalSize | None, terminal: TerminalSize
) -> None:
    process = await (await start(rig, tty=True, tty_size=size)).process()
    assert process.command.terminal == terminal


async def test_the_terminal_of_a_run_has_80_by_24(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    program = rig.sandboxes.script("x")
    await rig.peer.send(RUN, sandbox_v1.RunRequest(id="box", cmd=["x"], tty=True), trace_id="t")
    process = await program.process()
    assert process.command.terminal == TerminalSize(80, 24)


async def test_a_size_without_a_terminal_is_none(rig: Rig) -> None:
    program = await start(rig, tty_size=sandbox_v1.TerminalSize(width=10, height=10))
    process = await program.process()
    assert process.command.terminal is None


async def test_a_terminal_has_stdout_only(rig: Rig) -> None:
    process = await (await start(rig, tty=True)).process()
    process.write(b"out")
    process.write_error(b"err")
    process.exit(1)
    assert await rig.next(sandbox_v1.ExecOutput) == sandbox_v1.ExecOutput(stream="stdout", data=b"outerr")
    assert await rig.next(sandbox_v1.ExecOutput) == sandbox_v1.ExecOutput(stream="exit", exit_code=1, done=True)


async def test_no_terminal_is_as_large_as_that(rig: Rig) -> None:
    await rig.sandboxes.create("box")
    size = sandbox_v1.TerminalSize(width=65536, height=1)
    assert (await rig.refusal(EXEC, sandbox_v1.ExecRequest(id="box", cmd=["x"], tty=True, tty_size=size))).code == 400


async def test_the_terminal_gets_each_new_size_in_its_turn(rig: Rig) -> None:
    program = await start(rig, tty=True)
    for width in (100, 0, 65535):
        await resize(rig, width, 50)
    assert program.sizes == [TerminalSize(100, 50), TerminalSize(80, 50), TerminalSize(65535, 50)]


async def test_a_new_size_without_a_terminal_changes_nothing(rig: Rig) -> None:
    program = await start(rig)
    await resize(rig, 1, 1)
    await rig.peer.send(INPUT, b"goes on", trace_id="t")
    await wait_all_tasks_blocked()
    assert (program.sizes, program.typed) == ([], [b"goes on"])


@pytest.mark.parametrize("payload", [b"\xff", sandbox_v1.TerminalSize(width=65536).SerializeToString()])
async def test_a_size_that_makes_no_sense_is_logged_and_dropped(
    rig: Rig, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    program = await start(rig, tty=True)
    with caplog.at_level(logging.WARNING):
        await rig.peer.send(RESIZE, payload, trace_id="t")
        await rig.peer.send(INPUT, b"goes on", trace_id="t")
        await wait_all_tasks_blocked()
    assert (program.sizes, program.typed) == ([], [b"goes on"])
    assert "resize dropped" in caplog.text
