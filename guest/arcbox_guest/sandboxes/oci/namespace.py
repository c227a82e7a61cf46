"""A mount namespace of the driver's own, and threads that live in it.

Everything that the driver mounts is mounted there, and the runtime is called from there. So nothing of it shows
outside, and all of it vanishes with the agent, however that ends; a sandbox keeps its root file system by its own
namespace. crun 1.8 needs such a place: it refuses to work where it sees a cgroup2 mount beside cgroup v1.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import outcome
import trio
from attrs import define, field

from arcbox_guest import linux

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_T = TypeVar("_T")

_AT_ONCE: Final = 32
"""Calls that touch nothing but the driver's own files."""


@define(eq=False)
class MountNamespace:
    """The namespace. Leave its context to let go of it: it ends with the last of its threads."""

    _hidden: str = ""
    """A mount point of what shall not be seen inside; empty for none."""

    _opened: int = field(init=False)
    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    def __attrs_post_init__(self) -> None:
        self._opened = _in_a_thread(self._make)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1

    async def run(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function that touches nothing but own files. What was begun is finished, also when cancelled."""
        return await trio.to_thread.run_sync(partial(self.call, function, *arguments), limiter=self._limiter)

    async def run_abandonable(
        self, function: Callable[..., _T], *arguments: object, limiter: trio.CapacityLimiter
    ) -> _T:
        """Call a function that may wait for somebody's storage, for ever. A caller that is cancelled waits no longer.

        What it returns then is lost, and what it goes on to do is its own matter.

        Args:
            function: what to call.
            arguments: its own.
            limiter: of calls that may wait for the same, so that others are not held up by them.
        """
        call = partial(self.call, function, *arguments)
        return await trio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)

    def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function in a thread of the namespace. Blocks."""
        return _in_a_thread(partial(self._inside, function, *arguments))

    def _make(self) -> int:
        """A new namespace, as an open file. A thread has to move into it and be gone: none else may."""
        linux.unshare(linux.CLONE_NEWNS)
        # A slave: what is mounted outside later shows inside, where the machine has shared mounts; never the reverse.
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        if self._hidden:
            linux.unmount(self._hidden, linux.MNT_DETACH)
        return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def _inside(self, function: Callable[..., _T], *arguments: object) -> _T:
        linux.unshare(linux.CLONE_FS)  # threads share their working directory otherwise, and setns(2) refuses
        linux.setns(self._opened, linux.CLONE_NEWNS)
        return function(*arguments)


def _in_a_thread(function: Callable[[], _T]) -> _T:
    """Call a function in a thread of its own, which takes its namespaces and its working directory with it."""
    results: list[outcome.Maybe[_T]] = []
    # A daemon: one that waits for storage for ever must not keep the agent from ending.
    thread = threading.Thread(target=lambda: results.append(outcome.capture(function)), name="sandboxes", daemon=True)
    thread.start()
    thread.join()
    return results[0].unwrap()
