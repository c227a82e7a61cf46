"""The life of sandboxes, from creation to removal, by the wire."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

from arcbox_client.errors import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    NotSupportedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent
    from tests.sandboxes.conftest import Machine


async def test_a_life_in_events(machine: Machine, client: AgentClient) -> None:
    happened: list[tuple[str, str]] = []
    async with client.sandbox_events() as events:
        await machine.ready(client, "box")
        async with client.sandbox_run("box", ["sh", "-c", "exit 3"]) as session:
            assert await session.wait() == 3
        await client.sandbox_stop("box")
        await client.sandbox_remove("box")
        async for event in events:
            happened.append((event.action, event.attributes.get("exit_code", "")))
            if event.action == "removed":
                break
    assert [action for action, _ in happened] == [
        "created", "ready", "running", "idle", "stopping", "stopped", "removed",
    ]  # fmt: skip
    assert ("idle", "3") in happened
    assert machine.leftovers() == []
    with pytest.raises(NotFoundError):
        await client.sandbox_inspect("box")


async def test_the_initial_command_runs_once_it_is_ready(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box", cmd=["sh", "-c", "echo started >/started; exit 5"])
    await machine.until(client, "box", "ready")
    with trio.fail_after(10):
        while not (info := await client.sandbox_inspect("box")).last_exited_at:  # noqa: ASYNC110  as in `until`
            await trio.sleep(0.01)
    assert info.last_exit_code == 5
    async with client.sandbox_run("box", ["cat", "/started"]) as session:
        assert (await session.collect()).stdout == b"started\n"


async def test_requests_that_make_no_sense_are_told_so(machine: Machine, client: AgentClient) -> None:
    with pytest.raises(BadRequestError, match="no sandbox id"):
        await client.sandbox_create("../escape")
    with pytest.raises(NotFoundError, match="ghost"):
        await client.sandbox_stop("ghost")
    with pytest.raises(NotSupportedError, match="network"):
        await client.sandbox_create("box", network="tap")
    await machine.ready(client, "box")
    with pytest.raises(ConflictError, match="exists already"):
        await client.sandbox_create("box")
    async with client.sandbox_exec("box", ["sh", "-c", "echo up; cat"]) as session:
        await anext(session)
        with pytest.raises(ConflictError, match="running"):
            async with client.sandbox_run("box", ["true"]) as refused:
                await refused.wait()
        with pytest.raises(ConflictError, match="by force"):
            await client.sandbox_remove("box")


async def test_what_can_not_be_is_refused_and_leaves_nothing(machine: Machine, client: AgentClient) -> None:
    for refused in (
        client.sandbox_create("box", rootfs="/not/there"),
        client.sandbox_create("box", rootfs="/etc/passwd"),
        client.sandbox_create("box", mounts=[("/not/there", "/mnt")]),
        client.sandbox_create("box", user="nemo"),
    ):
        with pytest.raises(BadRequestError, match=r"/not/there|no image|nemo"):
            await refused
    assert list((await client.sandbox_list()).sandboxes) == []
    assert machine.leftovers() == []
    await client.sandbox_remove("box", force=True)


async def test_a_sandbox_that_can_not_be_made_fails_with_the_reason(
    machine: Machine, client: AgentClient, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(b"hsqs but no squashfs")
    async with client.sandbox_events("box", action="failed") as events:
        await client.sandbox_create("box", rootfs=str(tmp_path / "image"))
        event = await anext(events)
    assert "can't be mounted" in event.attributes["error"]
    assert "can't be mounted" in (await client.sandbox_inspect("box")).error
    await client.sandbox_remove("box")
    assert machine.leftovers() == []


async def test_events_and_inspect_tell_why_a_process_was_killed_or_not_started(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "box", cmd=["daemon"])
    await machine.until(client, "box", "ready")
    assert "daemon: not found" in (await client.sandbox_inspect("box")).error
    hog = ["sh", "-c", "tail /dev/zero"]
    for command, timeout, reason in ((hog, 0, "oom"), (["sleep", "1000"], 1, "timeout")):
        async with client.sandbox_events("box", action="idle") as events:
            async with client.sandbox_exec("box", command, timeout=timeout) as session:
                assert await session.wait() == 137
            with trio.fail_after(20):
                assert (await anext(events)).attributes == {"exit_code": "137", "reason": reason}
        assert (await client.sandbox_inspect("box")).error.startswith(f"{reason}: ")


async def test_a_second_agent_leaves_the_sandboxes_of_the_first_one_alone(machine: Machine) -> None:
    with machine.running():
        async with machine.client() as first:
            await machine.ready(first, "box")
            async with first.sandbox_exec("box", ["cat"]) as session:
                with machine.running() as other:
                    async with machine.client() as second:
                        assert (await second.ping()).message == "pong"
                        with pytest.raises(UnavailableError, match="one agent per data directory"):
                            await second.sandbox_list()
                    assert other.log.count("sandboxes are not available") == 1
                await session.send_stdin(b"still here\n")
                assert (await anext(session)).data == b"still here\n"


async def test_a_sandbox_goes_when_its_time_is_up(machine: Machine, client: AgentClient) -> None:
    async with client.sandbox_events("box", action="removed") as events:
        await client.sandbox_create("box", rootfs=str(machine.rootfs), cmd=["sleep", "1000"], ttl=1)
        with trio.fail_after(20):
            await anext(events)
    assert machine.leftovers() == []


async def test_stop_asks_and_then_kills(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box")
    polite = ["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"]
    deaf = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]
    async with client.sandbox_exec("box", polite) as one, client.sandbox_exec("box", deaf) as other:
        await anext(one)
        await anext(other)
        await client.sandbox_stop("box", timeout=1)
        assert await one.wait() == 9
        assert await other.wait() == 137
    assert (await client.sandbox_inspect("box")).state == "stopped"


async def test_an_init_that_is_killed_fails_its_sandbox(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box")
    async with client.sandbox_exec("box", ["cat"]) as session:
        (init,) = [child for child in psutil.process_iter(["cmdline"]) if _is_init_of(child, machine)]
        init.send_signal(signal.SIGKILL)
        assert await session.wait() == 137
    await machine.until(client, "box", "failed")
    await client.sandbox_remove("box")
    assert machine.leftovers() == []


def _is_init_of(process: psutil.Process, machine: Machine) -> bool:
    (cgroup,) = [path for path in machine.cgroups() if "unified" in str(path)] or machine.cgroups()[:1]
    return str(process.pid) in (cgroup / "cgroup.procs").read_text().split()


async def test_an_agent_that_ends_stops_its_sandboxes(machine: Machine) -> None:
    with machine.running():
        async with machine.client() as client:
            await machine.ready(client, "box", cmd=["sleep", "1000"])
    assert machine.cgroups() == []
    with machine.running():
        async with machine.client() as client:
            assert (await client.sandbox_inspect("box")).state == "stopped"
            await client.sandbox_remove("box")
            assert machine.leftovers() == []


async def test_where_there_were_never_sandboxes_an_agent_makes_nothing(machine: Machine, agent: RunningAgent) -> None:
    async with machine.client() as client:
        assert list((await client.sandbox_list()).sandboxes) == []
    assert not (machine.directory / "sandboxes").exists()
    assert '"level": "error"' not in agent.log
