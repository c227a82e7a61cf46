"""PauseSandbox, ResumeSandbox and SetLifecycle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.model import IdleAction
from arcbox_handlers._command import UnaryCommand
from arcbox_protocol import MessageType, arcbox_sandbox_v1

if TYPE_CHECKING:
    from arcbox_handlers._command import Context

_ACTIONS: Final = {
    arcbox_sandbox_v1.IDLE_ACTION_UNSPECIFIED: IdleAction.KILL,
    arcbox_sandbox_v1.IDLE_ACTION_KILL: IdleAction.KILL,
    arcbox_sandbox_v1.IDLE_ACTION_PAUSE: IdleAction.PAUSE,
}


@frozen
class PauseSandbox(UnaryCommand[arcbox_sandbox_v1.PauseSandboxRequest]):
    """Freezes a sandbox."""

    handles = MessageType.PauseSandboxRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        await context.guest.sandboxes.pause(self.request.id)


@frozen
class ResumeSandbox(UnaryCommand[arcbox_sandbox_v1.SandboxResumeCommand]):
    """Lets it go on."""

    handles = MessageType.ResumeSandboxRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_sandbox_v1.SandboxResumeResponse:
        sandbox = await context.guest.sandboxes.resume(self.request.id)
        return arcbox_sandbox_v1.SandboxResumeResponse(ip_address=sandbox.ip_address)


@frozen
class SetLifecycle(UnaryCommand[arcbox_sandbox_v1.SetLifecycleRequest]):
    """Changes when a sandbox ends by itself. A field that is not set leaves things as they are."""

    handles = MessageType.SetLifecycleRequest
    slow = True

    async def __call__(self, context: Context) -> None:
        request = self.request
        await context.guest.sandboxes.set_limits(
            request.id,
            ttl=float(request.ttl_seconds) if request.HasField("ttl_seconds") else None,
            idle_timeout=float(request.idle_timeout_seconds) if request.HasField("idle_timeout_seconds") else None,
            on_idle=_action(request.on_idle) if request.HasField("on_idle") else None,
        )


def _action(action: arcbox_sandbox_v1.IdleAction) -> IdleAction:
    if action not in _ACTIONS:
        raise InvalidArgumentError(f"{action} is no idle action: KILL is 1, PAUSE is 2")
    return _ACTIONS[action]
