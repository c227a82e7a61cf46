"""Shutdown."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_handlers._command import Acknowledgement, UnaryCommand
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_handlers._command import Context

_DEFAULT_GRACE = 25
"""Seconds, for a request that says 0."""


@frozen
class Shutdown(UnaryCommand[arcbox_v1.ShutdownRequest]):
    """Powers the machine off, once the peer was told that it will."""

    handles = MessageType.ShutdownRequest

    async def __call__(self, context: Context) -> Acknowledgement:
        power = context.guest.power
        power.check()
        grace = self.request.timeout_seconds or _DEFAULT_GRACE
        return Acknowledgement(arcbox_v1.ShutdownResponse(accepted=True), then=partial(power.begin, grace))
