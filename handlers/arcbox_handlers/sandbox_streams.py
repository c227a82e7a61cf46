"""SandboxRun, Exec and Events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.model import Action, TerminalSize
from arcbox_guest.sandboxes.states import READY, READY_OR_RUNNING
from arcbox_handlers import _sandbox_specs
from arcbox_handlers._command import StreamCommand
from arcbox_handlers._process_relay import relay
from arcbox_protocol import MessageType, sandbox_v1

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.events import Event
    from arcbox_handlers._command import Context, ReplyStream


@frozen
class SandboxRun(StreamCommand[sandbox_v1.RunRequest]):
    """A process in a sandbox in which nothing else runs. Its stdin is empty."""

    handles = MessageType.SandboxRunRequest

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        request = self.request
        command = _sandbox_specs.command(request, TerminalSize())
        async with context.guest.sandboxes.process(request.id, command, needs=READY) as process:
            await process.close_stdin()
            exit_code = await relay(process, stream)
        # Only now: whoever reads this may run the next process at once, which takes a sandbox that is ready again.
        await stream.send(sandbox_v1.RunOutput(stream="exit", exit_code=exit_code, done=True))


@frozen
class SandboxExec(StreamCommand[sandbox_v1.ExecRequest]):
    """A process in a sandbox, beside what runs there already, with a stdin and maybe a terminal."""

    handles = MessageType.SandboxExecRequest
    accepts = frozenset({MessageType.SandboxExecInput, MessageType.SandboxExecResize})

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        request = self.request
        command = _sandbox_specs.command(request, _sandbox_specs.terminal_size(request.tty_size))
        async with context.guest.sandboxes.process(request.id, command, needs=READY_OR_RUNNING) as process:
            exit_code = await relay(process, stream)
        await stream.send(sandbox_v1.ExecOutput(stream="exit", exit_code=exit_code, done=True))  # as in SandboxRun


@frozen
class SandboxEvents(StreamCommand[sandbox_v1.SandboxEventsRequest]):
    """What happens to sandboxes, from now on."""

    handles = MessageType.SandboxEventsRequest
    observes = True

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        with context.guest.sandboxes.subscribe(self.request.id, _action(self.request.action)) as events:
            stream.started()
            async for event in events:
                await stream.send(_message(event))


def _action(name: str) -> Action | None:
    try:
        return Action(name) if name else None
    except ValueError:
        raise InvalidArgumentError(f"{name[:80]!r} is no action: there are {', '.join(Action)}") from None


def _message(event: Event) -> sandbox_v1.SandboxEvent:
    return sandbox_v1.SandboxEvent(
        sandbox_id=event.sandbox_id,
        action=event.action,
        timestamp=event.timestamp_ns,
        attributes=event.attributes,
    )
