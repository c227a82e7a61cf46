"""A process that never was, because its command can't be executed: only its complaint and its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.model import ExecSpec, TerminalSize
    from arcbox_guest.sandboxes.oci.lookup import CommandError


@define(eq=False)
class Said:
    """Output that is there from the beginning."""

    _text: bytes = b""

    async def receive(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        text, self._text = self._text, b""
        return memoryview(text)

    def unread(self) -> int:
        return len(self._text)


@define(eq=False)
class Unstarted:
    """What a shell would have said and returned."""

    _exit_code: int
    stdout: Said
    stderr: Said | None = field(default=None)

    @classmethod
    def of(cls, command: ExecSpec, error: CommandError) -> Unstarted:
        if command.terminal is not None:
            return cls(error.exit_code, Said(f"{error}\r\n".encode()))
        return cls(error.exit_code, Said(), Said(f"{error}\n".encode()))

    async def send_stdin(self, data: bytes) -> None:  # noqa: ARG002  the interface's
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("it was not started")

    async def close_stdin(self) -> None:
        await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        """Nothing: it has no terminal."""

    async def wait(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._exit_code

    async def kill(self) -> None:
        await trio.lowlevel.checkpoint()
