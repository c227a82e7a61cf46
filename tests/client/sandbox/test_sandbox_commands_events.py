"""arcboxctl sandbox events."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from arcbox_protocol import ErrorReply, MessageType, sandbox_v1

if TYPE_CHECKING:
    from tests.client.sandbox.conftest import Cli

T = MessageType

EVENTS = [
    sandbox_v1.SandboxEvent(sandbox_id="box", action="ready", timestamp=1_767_225_600_500_000_000),
    sandbox_v1.SandboxEvent(
        sandbox_id="box", action="idle", timestamp=1_767_225_601_000_000_000, attributes={"exit_code": "3"}
    ),
]


async def test_events_are_a_line_each(cli: Cli) -> None:
    requests = cli.serve({T.SandboxEventsRequest: lambda _: list(EVENTS)})
    assert (await cli.sandbox("events", "box", "--action", "ready", "-n", "2")).stdout.decode().splitlines() == [
        "2026-01-01 00:00:00.500+00:00  box  ready",
        "2026-01-01 00:00:01.000+00:00  box  idle  exit_code=3",
    ]
    assert requests[0].message == sandbox_v1.SandboxEventsRequest(id="box", action="ready")


async def test_events_in_json_are_a_line_each_as_the_wire_has_them(cli: Cli) -> None:
    cli.serve({T.SandboxEventsRequest: lambda _: list(EVENTS)})
    lines = (await cli.sandbox("events", "-n", "2", "--json")).stdout.splitlines()
    assert json.loads(lines[1]) == {
        "sandbox_id": "box",
        "action": "idle",
        "timestamp": 1_767_225_601_000_000_000,
        "attributes": {"exit_code": "3"},
    }


async def test_events_that_were_missed_end_the_stream_with_an_error(cli: Cli) -> None:
    cli.serve({T.SandboxEventsRequest: lambda _: [EVENTS[0], ErrorReply(503, "events were lost")]})
    result = await cli.sandbox("events")
    assert (result.returncode, result.stdout.count(b"\n")) == (1, 1)
    assert result.stderr == b"arcboxctl: SandboxEventsRequest: events were lost (503)\n"


async def test_ctrl_c_ends_events_with_130(cli: Cli) -> None:
    cli.serve({T.SandboxEventsRequest: lambda _: list(EVENTS)})
    async with cli.running("events") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.stderr.receive_some() == b""
    assert process.returncode == 130
