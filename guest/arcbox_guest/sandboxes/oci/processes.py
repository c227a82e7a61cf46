"""Processes in a sandbox, by the clients that run them."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_guest.sandboxes.oci import pipes
from arcbox_guest.sandboxes.oci.pipes import End, Input, OutputStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_guest.sandboxes.model import TerminalSize
    from arcbox_guest.sandboxes.oci.clients import Client, PipedClient


@define(eq=False)
class PipedProcess:
    """A process with three pipes."""

    _client: Client
    _stdin: End
    stdout: OutputStream
    stderr: OutputStream

    async def send_stdin(self, data: bytes) -> None:
        await Input(self._stdin).send(data)

    async def close_stdin(self) -> None:
        self._stdin.close()
        await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        """Nothing: it has no terminal."""

    async def wait(self) -> int:
        return await self._client.wait()

    async def kill(self) -> None:
        self._client.group.kill()
        await trio.lowlevel.checkpoint()


@define(eq=False)
class TerminalProcess:
    """A process with a terminal."""

    _client: Client
    _master: End
    stdout: OutputStream
    stderr: None = None
    _stdin_ended: bool = field(init=False, default=False)

    async def send_stdin(self, data: bytes) -> None:
        await Input(self._master).send(data)

    async def close_stdin(self) -> None:
        if not self._stdin_ended:
            self._stdin_ended = True
            with suppress(trio.BrokenResourceError):  # nobody is left who could see it
                await self.send_stdin(pipes.END_OF_FILE)
        await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        if self._master.fd >= 0:
            pipes.resize(self._master.fd, size)

    async def wait(self) -> int:
        return await self._client.wait()

    async def kill(self) -> None:
        self._client.group.kill()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def piped(started: PipedClient) -> AsyncIterator[PipedProcess]:
    """A process whose client has been told what to run."""
    stdin, stdout, stderr = End(started.stdin), End(started.stdout), End(started.stderr)
    try:
        yield PipedProcess(started.client, stdin, OutputStream(stdout), OutputStream(stderr))
    finally:
        started.client.kill()  # first: who sees the end of its stdin may end by itself, and be taken for one that did
        for end in (stdin, stdout, stderr):
            end.close()


@asynccontextmanager
async def with_terminal(client: Client, master: int) -> AsyncIterator[TerminalProcess]:
    """The same with a terminal."""
    end = End(master)
    try:
        yield TerminalProcess(client, end, OutputStream(end))
    finally:
        client.kill()
        end.close()
