"""Tasks beside the body of a context manager."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run `tasks`, which raise nothing, until the body is done.

    An exception of the body leaves as it is, not in a group: people who write `async with connect(...)` need not
    know that there are tasks behind it.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield
        except trio.Cancelled:
            nursery.cancel_scope.cancel()
            raise
        except BaseException as error:  # noqa: BLE001  it is raised again, outside of the nursery
            failure = error
        # The tasks end at once, and the body's own exception must not get lost if the outside is cancelled just now.
        nursery.cancel_scope.shield = True
        nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # a frame that holds its own traceback is garbage only the collector finds
