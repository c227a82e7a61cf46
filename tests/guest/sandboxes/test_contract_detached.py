"""The contract of drivers: processes whose parent is not the agent."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.errors import ConflictError, InvalidArgumentError, OutOfRangeError
from arcbox_guest.sandboxes.detached import Channel, DetachedSpec
from arcbox_guest.sandboxes.model import ExecSpec, TerminalSize

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_guest.sandboxes.detached import DetachedProcess
    from arcbox_guest.sandboxes.driver import Driver
    from arcbox_guest.sandboxes.model import Spec


@pytest.fixture
async def sandbox(driver: Driver, spec: Spec) -> Driver:
    """The driver, with a sandbox that is called contract."""
    await driver.create(spec)
    return driver


def cat(name: str = "cat", *, stdin: bool = True) -> DetachedSpec:
    return DetachedSpec(name=name, command=ExecSpec(argv=("cat",)), stdin=stdin)


def shell(script: str) -> DetachedSpec:
    return DetachedSpec(name="shell", command=ExecSpec(argv=("sh", "-c", script)))


async def follow(process: DetachedProcess) -> None:
    await process.run()


@asynccontextmanager
async def followed(process: DetachedProcess) -> AsyncIterator[DetachedProcess]:
    """The process, as an agent has it that lives as long as the context."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, process)
        yield process
        nursery.cancel_scope.cancel()


async def everything(process: DetachedProcess, channel: Channel = Channel.STDOUT, offset: int = 0) -> bytes:
    data = b""
    while (piece := await process.read(channel, offset + len(data))).data:
        assert piece.offset == offset + len(data)
        data += piece.data
    return data


async def test_its_output_is_addressed_by_offset_and_its_exit_code_exact(sandbox: Driver) -> None:
    script = "echo out; echo err >&2"
    async with followed(await sandbox.start_detached("contract", shell(script))) as process:
        assert (await process.wait()).code == 0
        assert await everything(process) == b"out\n"
        assert await everything(process, Channel.STDOUT, 2) == b"t\n"
        assert await everything(process, Channel.STDERR) == b"err\n"
        assert [process.length(channel) for channel in Channel] == [4, 4]
        with pytest.raises(OutOfRangeError):
            await process.read(Channel.STDOUT, 5)


async def test_both_channels_can_be_one(sandbox: Driver) -> None:
    command = ExecSpec(argv=("sh", "-c", "echo out; echo err >&2"))
    started = await sandbox.start_detached("contract", DetachedSpec(name="one", command=command, merged=True))
    async with followed(started) as process:
        assert await everything(process) == b"out\nerr\n"
        assert await everything(process, Channel.STDERR) == b""


async def test_input_is_addressed_by_offset_and_what_is_repeated_changes_nothing(sandbox: Driver) -> None:
    async with followed(await sandbox.start_detached("contract", cat())) as process:
        await process.write_stdin(0, b"one ")
        await process.write_stdin(0, b"one two ")
        with pytest.raises(OutOfRangeError):
            await process.write_stdin(9, b"three")
        assert process.stdin_written == 8
        await process.write_stdin(8, b"three", last=True)
        await process.write_stdin(4, b"two three", last=True)
        assert await everything(process) == b"one two three"
        assert (await process.wait()).code == 0
        assert process.stdin_closed


async def test_without_a_stdin_the_end_of_it_is_seen_at_once(sandbox: Driver) -> None:
    await_end = shell("read line; exit $line")
    async with followed(await sandbox.start_detached("contract", await_end)) as process:
        assert (await process.wait()).code != 0


async def test_a_name_is_taken_once(sandbox: Driver) -> None:
    async with followed(await sandbox.start_detached("contract", cat())):
        with pytest.raises(ConflictError, match="cat"):
            await sandbox.start_detached("contract", cat())


async def test_it_goes_on_when_nobody_follows_it_and_is_found_again_with_its_facts(sandbox: Driver) -> None:
    spec = DetachedSpec(name="cat", command=ExecSpec(argv=("cat",)), stdin=True, facts={"since": 12.5})
    async with followed(await sandbox.start_detached("contract", spec)) as process:
        await process.write_stdin(0, b"before ")
        assert (await process.read(Channel.STDOUT, 0)).data == b"before "
    (found,) = await sandbox.detached("contract")
    assert (found.name, found.facts, found.exit) == ("cat", {"since": 12.5}, None)
    async with followed(found) as process:
        assert (await process.read(Channel.STDOUT, 0)).data == b"before "
        await process.write_stdin(0, b"before after", last=True)
        assert await everything(process) == b"before after"
    (ended,) = await sandbox.detached("contract")
    async with followed(ended) as process:
        assert (await process.wait()).code == 0
        assert await everything(process) == b"before after"


async def test_a_signal_reaches_it(sandbox: Driver) -> None:
    async with followed(await sandbox.start_detached("contract", cat())) as process:
        await process.signal(15)
        assert (await process.wait()).code == 143
        await process.signal(15)


async def test_kill_takes_the_whole_tree(sandbox: Driver) -> None:
    tree = shell("setsid sleep 1000 >/dev/null 2>&1 & echo left; cat")
    tree = DetachedSpec(name="tree", command=tree.command, stdin=True)
    async with followed(await sandbox.start_detached("contract", tree)) as process:
        assert (await process.read(Channel.STDOUT, 0)).data == b"left\n"
        await process.kill()
        assert (await process.wait()).code == 137
        await sandbox.idle("contract")


async def test_what_it_leaves_behind_does_not_keep_its_output_open(sandbox: Driver) -> None:
    script = "sleep 1000 & echo left; exit 3"
    async with followed(await sandbox.start_detached("contract", shell(script))) as process:
        assert await everything(process) == b"left\n"
        assert (await process.wait()).code == 3


async def test_a_stop_of_the_sandbox_kills_it_and_what_it_wrote_stays(sandbox: Driver) -> None:
    async with followed(await sandbox.start_detached("contract", cat())) as process:
        await process.write_stdin(0, b"last words")
        assert (await process.read(Channel.STDOUT, 0)).data == b"last words"
        await sandbox.stop("contract")
        assert (await process.wait()).code == 137
        assert await everything(process) == b"last words"


async def test_a_terminal_can_be_resized_and_typed_on(sandbox: Driver) -> None:
    command = ExecSpec(argv=("sh", "-c", "stty size; read line; stty size"), terminal=TerminalSize(132, 50))
    async with followed(await sandbox.start_detached("contract", DetachedSpec(name="tty", command=command))) as process:
        shown = b""
        while not shown.endswith(b"\n"):  # a line may come in pieces
            shown += (await process.read(Channel.STDOUT, len(shown))).data
        assert shown == b"50 132\r\n"
        process.resize(TerminalSize(90, 30))
        await process.write_stdin(0, b"\n")
        assert (await everything(process)).endswith(b"30 90\r\n")
        assert (await process.wait()).code == 0


@pytest.mark.parametrize(("name", "code"), [("no-such-program", 127), ("/etc/passwd", 126)])
async def test_what_can_not_be_executed_has_ended_with_a_shells_complaint(
    sandbox: Driver, name: str, code: int
) -> None:
    spec = DetachedSpec(name="never", command=ExecSpec(argv=(name,)))
    async with followed(await sandbox.start_detached("contract", spec)) as process:
        assert (await process.wait()).code == code
        assert name.encode() in await everything(process, Channel.STDERR)


async def test_no_user_and_no_directory_leave_nothing(sandbox: Driver) -> None:
    for command in (ExecSpec(argv=("true",), user="nemo"), ExecSpec(argv=("true",), working_dir="/not/there")):
        with pytest.raises(InvalidArgumentError):
            await sandbox.start_detached("contract", DetachedSpec(name="never", command=command))
    assert await sandbox.detached("contract") == []
