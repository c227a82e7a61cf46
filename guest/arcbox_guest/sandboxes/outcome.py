"""How an operation ended, for all who wait for it in tasks of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

if TYPE_CHECKING:
    from arcbox_guest.errors import GuestError


@define(eq=False)
class Outcome:
    """Settled once. Whoever stops waiting for it does not stop the operation."""

    _settled: trio.Event = field(init=False, factory=trio.Event)
    _error: GuestError | None = field(init=False, default=None)

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    def settle(self, error: GuestError | None = None) -> None:
        """Let everybody go on; only the first time counts."""
        if not self._settled.is_set():
            self._error = error
            self._settled.set()

    async def wait(self) -> None:
        """Wait for the end.

        Raises:
            GuestError: it failed.
        """
        await self._settled.wait()
        if self._error is not None:
            raise type(self._error)(str(self._error))  # each gets one of their own: tracebacks grow on what is raised
