"""arcboxctl sandbox create, ls, inspect, stop, rm and events, against an agent that does what the test says."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_protocol import ErrorReply, MessageType, arcbox_v1, sandbox_v1

if TYPE_CHECKING:
    from arcbox_client.testing import FakeAgent, Request, Script
    from tests.client.sandbox.conftest import Cli

T = MessageType


def of_type(requests: list[Request], message_type: MessageType) -> list[Request]:
    return [request for request in requests if request.type == message_type]


INFO = sandbox_v1.SandboxInfo(
    id="box",
    state="ready",
    labels={"b": "2", "a": "1"},
    limits=sandbox_v1.ResourceLimits(vcpus=2, memory_mib=1536),
    created_at=1_767_225_600,
    ready_at=1_767_225_601,
)


def creation(states: list[str], error: str = "") -> Script:
    """An agent whose new sandbox is in these states, one after the other, with an event for each."""
    left = list(states)
    happened = [sandbox_v1.SandboxEvent(sandbox_id="box", action="created") for _ in states]

    def inspect(_: Request) -> sandbox_v1.SandboxInfo | ErrorReply:
        state = left.pop(0) if len(left) > 1 else left[0]
        if state == "removed":
            return ErrorReply(404, "there is no sandbox 'box'")
        return sandbox_v1.SandboxInfo(id="box", state=state, error=error)

    return {
        T.SandboxCreateRequest: lambda _: sandbox_v1.CreateSandboxResponse(id="box", state="starting"),
        T.SandboxEventsRequest: lambda _: list(happened),
        T.SandboxInspectRequest: inspect,
    }


async def test_create_asks_for_what_the_options_say_and_writes_the_id(cli: Cli) -> None:
    requests = cli.serve(creation(["ready"]))
    options = ["--id", "box", "--rootfs", "/img", "-l", "a=1", "--label", "b=x=y", "-e", "A=", "-e", "HERE"]
    options += ["--memory", "2g", "--cpus", "2", "--mount", "/a:/b:ro", "--mount", "/c:/d", "--ttl", "15m"]
    options += ["--user", "1:2", "--workdir", "/w", "--image", "alpine", "--network", "none"]
    result = await cli.sandbox("create", *options, "--", "sleep", "--ttl", "5", HERE="value")
    assert result == (0, b"box\n", b"")
    [request] = of_type(requests, T.SandboxCreateRequest)
    assert request.message == sandbox_v1.CreateSandboxRequest(
        id="box",
        rootfs="/img",
        labels={"a": "1", "b": "x=y"},
        env={"A": "", "HERE": "value"},
        limits=sandbox_v1.ResourceLimits(vcpus=2, memory_mib=2048),
        mounts=[
            sandbox_v1.Mount(source="/a", target="/b", readonly=True),
            sandbox_v1.Mount(source="/c", target="/d"),
        ],
        ttl_seconds=900,
        user="1:2",
        working_dir="/w",
        cmd=["sleep", "--ttl", "5"],
        image="alpine",
        network=sandbox_v1.NetworkSpec(mode="none"),
    )


async def test_sb_is_short_for_sandbox(cli: Cli) -> None:
    requests = cli.serve({T.SandboxStopRequest: lambda _: b""})
    assert (await cli.arcboxctl("sb", "stop", "box")).returncode == 0
    assert len(of_type(requests, T.SandboxStopRequest)) == 1


async def test_create_without_options_leaves_all_to_the_agent(cli: Cli) -> None:
    requests = cli.serve(creation(["ready"]))
    assert (await cli.sandbox("create")).stdout == b"box\n"
    [request] = of_type(requests, T.SandboxCreateRequest)
    assert request.message == sandbox_v1.CreateSandboxRequest()


async def test_create_waits_for_the_event(cli: Cli) -> None:
    looks: list[str] = []
    happened = trio.Event()

    async def answer(agent: FakeAgent) -> None:
        while True:
            request = await agent.receive()
            if request.type == T.SandboxEventsRequest:
                await agent.reply(await agent.receive(), arcbox_v1.AgentPingResponse())
                await happened.wait()
                for action in ("created", "ready"):
                    await agent.reply(request, sandbox_v1.SandboxEvent(sandbox_id="box", action=action))
            elif request.type == T.SandboxCreateRequest:
                await agent.reply(request, sandbox_v1.CreateSandboxResponse(id="box", state="starting"))
            else:
                state = "ready" if happened.is_set() else "starting"
                await agent.reply(request, sandbox_v1.SandboxInfo(id="box", state=state))
                looks.append(state)
                happened.set()

    cli.serve_talk(answer)
    result = await cli.sandbox("create", "--json")
    assert json.loads(result.stdout)["state"] == "ready"
    assert looks == ["starting", "ready"]


async def test_create_in_json_is_all_that_is_known(cli: Cli) -> None:
    cli.serve(creation(["ready"]))
    info = json.loads((await cli.sandbox("create", "--json")).stdout)
    assert (info["id"], info["state"]) == ("box", "ready")


async def test_create_without_waiting_asks_once(cli: Cli) -> None:
    requests = cli.serve(creation(["starting"]))
    assert await cli.sandbox("create", "--no-wait") == (0, b"box\n", b"")
    assert [request.type for request in requests] == [T.SandboxCreateRequest]
    reply = json.loads((await cli.sandbox("create", "--no-wait", "--json")).stdout)
    assert (reply["id"], reply["state"]) == ("box", "starting")


@pytest.mark.parametrize(
    ("states", "error", "line"),
    [
        (["starting", "failed"], "no such root file system", "sandbox box has failed: no such root file system"),
        (["starting", "stopped"], "", "sandbox box is stopped: before it was ready"),
        (["starting", "removed"], "", "sandbox box was removed: before it was ready"),
    ],
)
async def test_a_sandbox_that_does_not_get_ready_is_one_line_and_exit_code_125(
    cli: Cli, states: list[str], error: str, line: str
) -> None:
    cli.serve(creation(states, error))
    assert await cli.sandbox("create") == (125, b"", f"arcboxctl: {line}\n".encode())


async def test_a_sandbox_that_does_not_get_ready_in_time_is_one_line(cli: Cli) -> None:
    cli.serve(creation(["starting"]))
    result = await cli.sandbox("--timeout", "0.7", "create")
    assert result == (125, b"", b"arcboxctl: sandbox box is not ready within 0.7 s\n")


async def test_an_error_of_the_agent_is_one_line(cli: Cli) -> None:
    script = {**creation(["ready"]), T.SandboxCreateRequest: lambda _: ErrorReply(409, "box is in use")}
    cli.serve(script)
    result = await cli.sandbox("create", "--id", "box")
    assert result == (125, b"", b"arcboxctl: SandboxCreateRequest: box is in use (409)\n")
    error = json.loads((await cli.sandbox("create", "--json")).stderr)["error"]
    assert (error["code"], error["exit_code"]) == (409, 125)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["create", "--label", "a"], "'a' has no value: write a=VALUE"),
        (["create", "--env", "=a"], "write NAME=VALUE"),
        (["create", "--env", "NOT_HERE"], "'NOT_HERE' has no value here"),
        (["create", "--memory", "lots"], "write 512 (MiB)"),
        (["create", "--ttl", "-1"], "is no duration"),
        (["create", "--ttl", "1y"], "is no duration"),
        (["create", "--ttl", "4294967296"], "is no duration"),
        (["create", "--mount", "/a"], "is no mount"),
        (["create", "--mount", "a:/b"], "is no mount"),
        (["create", "--mount", "/a:/b:rx"], "is no mount"),
        (["create", "--mount", "/a:/b:ro:"], "is no mount"),
        (["run", "box"], "missing argument"),
        (["run", "box", "--"], "missing argument"),
        (["run", "box", "--user", "me", "ls"], "options such as --user stand before the id"),
        (["exec", "-it", "box", "sh"], "stdin is no terminal"),
        (["exec", "-t", "--json", "box", "sh"], "do not go together"),
        (["exec", "--detach-keys", "ctrl-", "box", "sh"], "is no key"),
        (["ls", "--state", "runing"], "runing"),
        (["rm"], "missing argument"),
        (["bogus"], "no such command 'bogus'"),
    ],
)
async def test_what_makes_no_sense_is_one_line_and_exit_code_2_or_125_beside_a_process(
    cli: Cli, arguments: list[str], word: str
) -> None:
    result = await cli.sandbox(*arguments)
    beside_a_process = arguments[0] in {"create", "run", "exec"}
    assert (result.returncode, result.stdout) == (125 if beside_a_process else 2, b"")
    assert word in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1


def listed(count: int = 2) -> Script:
    def reply(_: Request) -> sandbox_v1.ListSandboxesResponse:
        created = int(time.time()) - 3700
        return sandbox_v1.ListSandboxesResponse(
            sandboxes=[
                sandbox_v1.SandboxSummary(
                    id="box", state="ready", labels={"b": "2", "a": "1"}, ip_address="172.20.0.2", created_at=created
                ),
                sandbox_v1.SandboxSummary(id="a-much-longer-id", state="failed", created_at=created * 2),
            ][:count]
        )

    return {T.SandboxListRequest: reply}


async def test_ls_in_a_pipe_is_columns(cli: Cli) -> None:
    requests = cli.serve(listed())
    result = await cli.sandbox("ls", "--state", "ready", "-l", "a=1", "-l", "b=2")
    assert result.stdout.decode().splitlines() == [
        "ID                STATE   AGE        ADDRESS     LABELS",
        "box               ready   1 h 1 min  172.20.0.2  a=1, b=2",
        "a-much-longer-id  failed  0 s        -           -",
    ]
    [request] = requests
    assert request.message == sandbox_v1.ListSandboxesRequest(state="ready", labels={"a": "1", "b": "2"})


async def test_ls_of_nothing_has_its_heads_only(cli: Cli) -> None:
    cli.serve(listed(0))
    assert (await cli.sandbox("ls")).stdout == b"ID  STATE  AGE  ADDRESS  LABELS\n"


async def test_ls_quiet_is_the_ids(cli: Cli) -> None:
    cli.serve(listed())
    assert (await cli.sandbox("ls", "-q")).stdout == b"box\na-much-longer-id\n"


async def test_ls_in_json_is_what_the_wire_has(cli: Cli) -> None:
    cli.serve(listed())
    box, other = json.loads((await cli.sandbox("ls", "--json")).stdout)["sandboxes"]
    assert (box["id"], box["labels"], box["ip_address"]) == ("box", {"a": "1", "b": "2"}, "172.20.0.2")
    assert (other["state"], other["labels"]) == ("failed", {})


async def test_inspect_shows_what_there_is(cli: Cli) -> None:
    requests = cli.serve({T.SandboxInspectRequest: lambda _: INFO})
    result = await cli.sandbox("inspect", "box")
    assert result.stdout.decode().splitlines() == [
        "id: box",
        "state: ready",
        "created: 2026-01-01 00:00:00+00:00",
        "ready: 2026-01-01 00:00:01+00:00",
        "labels: a=1, b=2",
        "processors: 2",
        "memory: 1.5 GiB",
    ]
    assert requests[0].message == sandbox_v1.InspectSandboxRequest(id="box")
    info = json.loads((await cli.sandbox("inspect", "box", "--json")).stdout)
    assert (info["limits"], info["last_exit_code"]) == ({"vcpus": 2, "memory_mib": 1536}, 0)


async def test_stop_and_rm_say_what_was_done_with_each(cli: Cli) -> None:
    requests = cli.serve({T.SandboxStopRequest: lambda _: None, T.SandboxRemoveRequest: lambda _: None})
    assert (await cli.sandbox("stop", "a", "b", "-t", "2m")).stdout == b"a\nb\n"
    assert (await cli.sandbox("rm", "-f", "a", "--json")).stdout == b'{"id": "a", "removed": true}\n'
    assert [request.message for request in requests] == [
        sandbox_v1.StopSandboxRequest(id="a", timeout_seconds=120),
        sandbox_v1.StopSandboxRequest(id="b", timeout_seconds=120),
        sandbox_v1.RemoveSandboxRequest(id="a", force=True),
    ]


async def test_what_fails_for_one_does_not_keep_the_others_from_it(cli: Cli) -> None:
    def remove(request: Request) -> ErrorReply | None:
        return ErrorReply(409, "it runs") if request.message == sandbox_v1.RemoveSandboxRequest(id="b") else None

    cli.serve({T.SandboxRemoveRequest: remove})
    result = await cli.sandbox("rm", "a", "b", "c")
    assert result == (1, b"a\nc\n", b"arcboxctl: SandboxRemoveRequest: it runs (409)\n")


async def test_help_says_what_there_is(cli: Cli) -> None:
    result = await cli.sandbox("--help")
    for word in (b"create", b"ls", b"inspect", b"run", b"exec", b"events", b"stop", b"rm", b"exec -it"):
        assert word in result.stdout
    for command in ("create", "exec", "run", "ls"):
        assert (await cli.sandbox(command, "--help")).returncode == 0
