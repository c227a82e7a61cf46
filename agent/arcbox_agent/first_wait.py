"""Finding out that something has to wait, at the moment when it first does."""

from __future__ import annotations

import types
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

ResultT = TypeVar("ResultT")


@types.coroutine
def with_first_wait(awaitable: Awaitable[ResultT], call: Callable[[], None]) -> Generator[Any, Any, ResultT]:
    """Await something, and call `call` before it gives way to other tasks for the first time, if it ever does."""
    steps = awaitable.__await__()
    try:
        trap = next(steps)
    except StopIteration as end:
        result: ResultT = end.value
        return result
    call()
    return (yield from _resumed(steps, trap))


def _resumed(steps: Generator[Any, Any, ResultT], trap: object) -> Generator[Any, Any, ResultT]:
    """What `yield from` does, with a generator that has yielded once already."""
    while True:
        try:
            answer = yield trap
        except BaseException as error:  # noqa: BLE001  a cancellation, say: it is for what waits
            resume = partial(steps.throw, error)
        else:
            resume = partial(steps.send, answer)
        try:
            trap = resume()
        except StopIteration as end:
            result: ResultT = end.value
            return result
