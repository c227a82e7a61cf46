"""`arcboxctl sandbox` as a process of its own, in pipes or on a terminal, and agents for it to talk to."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
from attrs import define, field

from arcbox_protocol import ErrorReply, MessageType, arcbox_v1, sandbox_v1
from tests.client.terminal import on_a_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from arcbox_client.testing import FakeAgent, Request, Script
    from tests.client.conftest import Listener
    from tests.client.terminal import Terminal


class Result(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes


@define(eq=False)
class Cli:
    """`arcboxctl sandbox`, as a process of its own, and the agent that it talks to."""

    listener: Listener

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "arcbox_client.cli", "sandbox"]

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "ARCBOX_CONNECT": self.listener.address, "COLUMNS": "100", "TZ": "UTC", **variables}

    async def sandbox(self, *arguments: str, stdin: bytes = b"", **variables: str) -> Result:
        """Run `arcboxctl sandbox`; nothing of it is a terminal."""
        return await self.arcboxctl("sandbox", *arguments, stdin=stdin, **variables)

    async def arcboxctl(self, *arguments: str, stdin: bytes = b"", **variables: str) -> Result:
        """Run `arcboxctl`; nothing of it is a terminal."""
        done = await trio.run_process(
            [sys.executable, "-m", "arcbox_client.cli", *arguments],
            env=self.environment(**variables),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[trio.Process]:
        """`arcboxctl sandbox` while it runs; the context ends when it does."""
        command = partial(
            trio.run_process,
            [*self.command, *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(command)
            yield process

    def serve(self, script: Script) -> list[Request]:
        """Answer every connection by a script; returns the list of the requests that will have come."""
        requests: list[Request] = []

        async def answer(agent: FakeAgent) -> None:
            agent.requests = requests
            await agent.serve({MessageType.PingRequest: lambda _: arcbox_v1.AgentPingResponse(), **script})

        self.listener.serve_agent(answer)
        return requests

    def serve_talk(self, talk: Callable[[FakeAgent], Awaitable[None]]) -> None:
        """Talk on every connection until the client closes it; the first one is not used by streams."""

        async def until_the_end(agent: FakeAgent) -> None:
            with suppress(trio.EndOfChannel, trio.BrokenResourceError):
                await talk(agent)

        self.listener.serve_agent(until_the_end)

    @asynccontextmanager
    async def on_a_terminal(self, *arguments: str, columns: int = 100, rows: int = 30) -> AsyncIterator[Terminal]:
        """The same on a terminal; killed at the end, if it still runs."""
        environment = {"ARCBOX_CONNECT": self.listener.address}
        async with on_a_terminal([*self.command, *arguments], environment, columns=columns, rows=rows) as terminal:
            yield terminal


@pytest.fixture
def cli(listener: Listener) -> Cli:
    return Cli(listener)


@define(eq=False)
class Guest:
    """An agent that tells what it got, in the order it came, and says what the test says."""

    listener: Listener
    start: sandbox_v1.ExecRequest | None = field(init=False, default=None)
    stdin: bytes = field(init=False, default=b"")
    stdin_ended: bool = field(init=False, default=False)
    sizes: list[tuple[int, int]] = field(init=False, factory=list)
    started: trio.Event = field(init=False, factory=trio.Event)
    gone: trio.Event = field(init=False, factory=trio.Event)
    """Set when nobody is connected to the process any more."""

    _news: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _agent: FakeAgent = field(init=False)
    _request: Request = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.listener.serve_agent(self._serve)

    async def _serve(self, agent: FakeAgent) -> None:
        with suppress(trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            request = await agent.receive()
            if request.type != MessageType.SandboxExecRequest:  # why it was killed: this agent does not know
                return
            self._agent, self._request = agent, request
            self.start = sandbox_v1.ExecRequest.FromString(request.payload)
            self.started.set()
            try:
                while True:
                    self._take(await agent.receive())
                    self._news.unpark_all()
            finally:
                self.gone.set()

    def _take(self, request: Request) -> None:
        if request.type == MessageType.SandboxExecResize:
            size = sandbox_v1.TerminalSize.FromString(request.payload)
            self.sizes.append((size.width, size.height))
        elif request.payload:
            self.stdin += request.payload
        else:
            self.stdin_ended = True

    async def got(self, stdin: bytes) -> None:
        while not self.stdin.endswith(stdin):
            await self._news.park()

    async def got_the_end_of_stdin(self) -> None:
        while not self.stdin_ended:
            await self._news.park()

    async def resized(self, columns: int, rows: int) -> None:
        while (columns, rows) not in self.sizes:
            await self._news.park()

    async def say(self, data: bytes) -> None:
        await self._agent.reply(self._request, sandbox_v1.ExecOutput(stream="stdout", data=data))

    async def exit(self, code: int) -> None:
        await self._agent.reply(self._request, sandbox_v1.ExecOutput(stream="exit", exit_code=code, done=True))

    async def refuse(self, error: ErrorReply) -> None:
        await self._agent.reply(self._request, error)


@pytest.fixture
def guest(listener: Listener) -> Guest:
    return Guest(listener)
