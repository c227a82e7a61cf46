"""DiskTrim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from arcbox_guest.errors import GuestError
from arcbox_handlers._command import UnaryCommand
from arcbox_protocol import MessageType, arcbox_v1

if TYPE_CHECKING:
    from arcbox_guest.disks import TrimResult
    from arcbox_handlers._command import Context


@frozen
class DiskTrim(UnaryCommand[arcbox_v1.DiskTrimRequest]):
    """Gives free blocks of the data disks back to the host."""

    handles = MessageType.DiskTrimRequest
    slow = True

    async def __call__(self, context: Context) -> arcbox_v1.DiskTrimResponse:
        results = await context.guest.disks.trim()
        text = "; ".join(map(_describe, results)) or "no data volume mounted"
        if results and all(result.error is not None for result in results):
            raise GuestError(text)
        return arcbox_v1.DiskTrimResponse(result=text)


def _describe(result: TrimResult) -> str:
    if result.error is not None:
        return f"{result.mount}: {result.error}"
    return f"{result.mount}: {result.trimmed} bytes trimmed"
