"""What processes in sandboxes read and write, and what becomes of them when their peer goes away."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import connect
from arcbox_protocol import MessageType, encode_frame, sandbox_v1

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent
    from tests.sandboxes.conftest import Machine

MEBIBYTE = 1 << 20
STREAMED = int(os.environ.get("ARCBOX_TEST_STREAMED_MIB", "2048")) * MEBIBYTE
"""Of stdout."""


async def test_all_output_arrives_and_the_agent_stays_as_small_as_it_was(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box", vcpus=2, memory_mib=128)
    script = "dd if=/dev/zero bs=256k count=$1 status=none"
    before = most = 0
    for size in (16 * MEBIBYTE, STREAMED):  # the first for what is only ever allocated once
        before = machine.process.memory_info().rss
        received, most = 0, before
        async with client.sandbox_run("box", ["sh", "-c", script, "sh", str(size >> 18)]) as session:
            async for output in session:
                assert output.stream == "stdout"
                received += len(output.data)
                if received % (32 * MEBIBYTE) < len(output.data):
                    most = max(most, machine.process.memory_info().rss)
        assert session.exit_code == 0
        assert received == size
    assert most < before + 8 * MEBIBYTE


async def test_binary_output_of_both_streams_arrives_as_it_was_written(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box")
    script = """
        head -c 5000000 /dev/urandom >/a; head -c 3000001 /dev/urandom >/b
        sha256sum /a /b >/sums
        cat /b >&2 & cat /a; wait
    """
    async with client.sandbox_run("box", ["sh", "-c", script]) as session:
        done = await session.collect()
    async with client.sandbox_run("box", ["cat", "/sums"]) as session:
        sums = [line.split()[0] for line in (await session.collect()).stdout.decode().splitlines()]
    assert [hashlib.sha256(data).hexdigest() for data in (done.stdout, done.stderr)] == sums


async def test_a_reader_that_takes_its_time_gets_everything_and_costs_no_memory(
    machine: Machine, client: AgentClient, agent: RunningAgent
) -> None:
    await machine.ready(client, "box")
    request = sandbox_v1.RunRequest(id="box", cmd=["dd", "if=/dev/zero", "bs=256k", "count=256", "status=none"])
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(agent.address.removeprefix("unix:"))
        peer.sendall(encode_frame(MessageType.SandboxRunRequest, "t", request.SerializeToString()))
        before = machine.process.memory_info().rss
        await machine.until(client, "box", "running")
        for _ in range(100):  # others are answered, however long this peer does not read
            await client.ping()
        assert (await client.sandbox_inspect("box")).state == "running"
        assert machine.process.memory_info().rss < before + 4 * MEBIBYTE
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(peer.dup()))
        received = 0
        async with stream:
            async for data in stream:
                received += len(data)
                if received > 64 * MEBIBYTE:
                    break
    await machine.until(client, "box", "ready")


async def test_many_processes_talk_over_one_connection_at_once(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box", memory_mib=256)

    async def talk(number: int) -> None:
        data = str(number).encode() * 20_000
        async with client.sandbox_exec("box", ["cat"]) as session:
            done = await session.communicate(data)
        assert (done.exit_code, done.stdout) == (0, data)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(talk, number)


COUNT = """cat /proc/[0-9]*/stat 2>/dev/null | awk '$2 ~ /sleep|yes/ && $3 != "Z" { n++ } END { print n + 0 }'"""
"""Of the processes below that are alive. Zombies are those of PID 1 outside, who may take his time with them."""


async def alive(client: AgentClient) -> int:
    async with client.sandbox_exec("box", ["sh", "-c", COUNT]) as session:
        return int((await session.collect()).stdout)


async def none_is_left(client: AgentClient) -> None:
    with trio.fail_after(10):
        while await alive(client):
            pass


SILENT = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]
CHATTY = ["sh", "-c", "setsid yes & yes"]


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("argv", [SILENT, CHATTY])
@pytest.mark.parametrize("phase", ["starting", "running"])
async def test_a_peer_that_goes_away_takes_its_processes_with_it(
    machine: Machine, client: AgentClient, agent: RunningAgent, phase: str, argv: list[str], *, tty: bool
) -> None:
    await machine.ready(client, "box")
    before = machine.process.num_fds()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(agent.address.removeprefix("unix:"))
        request = sandbox_v1.ExecRequest(id="box", cmd=argv, tty=tty)
        peer.sendall(encode_frame(MessageType.SandboxExecRequest, "t", request.SerializeToString()))
        if phase == "running":
            await machine.until(client, "box", "running")
            with trio.fail_after(10):
                while await alive(client) < 2:
                    pass
    await none_is_left(client)
    with trio.fail_after(10):
        await trio.lowlevel.checkpoint()
        while machine.process.num_fds() > before:  # noqa: ASYNC110  the agent is not in here
            await trio.sleep(0.01)


async def test_a_connection_that_breaks_ends_every_process_of_it(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box", memory_mib=256)
    assert machine.agent is not None
    up: list[object] = []
    async with connect(machine.agent.address) as other, trio.open_nursery() as nursery:

        async def sleep() -> None:
            async with other.sandbox_exec("box", ["sh", "-c", "echo up; sleep 1000"]) as session:
                await anext(session)
                up.append(session)
                if len(up) == 10:
                    nursery.cancel_scope.cancel()
                await session.wait()

        for _ in range(10):
            nursery.start_soon(sleep)
    await machine.until(client, "box", "ready")


async def test_a_terminal_has_the_size_of_the_window_and_follows_it(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box")
    async with client.sandbox_exec(
        "box", ["sh", "-c", "stty size; read x; stty size; exit 7"], tty=True, tty_size=(100, 40)
    ) as it:
        said = b""
        while not said.endswith(b"\n"):
            said += (await anext(it)).data
        assert said == b"40 100\r\n"
        await it.resize(132, 43)
        await it.send_stdin(b"\n")
        done = await it.collect()
    assert done.stdout.endswith(b"43 132\r\n")
    assert done.exit_code == 7


async def test_a_process_that_takes_too_long_is_killed_with_all_its_children(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "box")
    async with client.sandbox_run("box", ["sh", "-c", "setsid sleep 1000 & sleep 1000"], timeout=1) as session:
        assert await session.wait() == 137
    await none_is_left(client)


async def test_a_daemon_that_is_left_behind_does_not_keep_the_stream_open(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "box")
    with trio.fail_after(10):
        async with client.sandbox_run("box", ["sh", "-c", "sleep 1000 & echo left; exit 3"]) as session:
            done = await session.collect()
    assert (done.exit_code, done.stdout) == (3, b"left\n")
    assert await alive(client) == 1


@pytest.mark.parametrize(("argv", "code"), [(["gone"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -9 $$"], 137)])
async def test_exit_codes_are_those_that_a_shell_has(
    machine: Machine, client: AgentClient, argv: list[str], code: int
) -> None:
    await machine.ready(client, "box")
    async with client.sandbox_exec("box", argv) as session:
        done = await session.collect()
    assert done.exit_code == code
    assert bool(done.stderr) == (code < 128)
