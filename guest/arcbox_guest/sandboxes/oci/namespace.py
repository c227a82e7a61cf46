"""A mount namespace of the driver's own, and threads that live in it.

Everything that the driver mounts is mounted there, and the runtime is called from there. So nothing of it shows
outside, and all of it vanishes with the agent, however that ends; a sandbox keeps its root file system by its own
namespace. crun 1.8 needs such a place: it refuses to work where it sees a cgroup2 mount beside cgroup v1.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import outcome
import trio
from attrs import define, field

from arcbox_guest import linux

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

_T = TypeVar("_T")

_THREADS: Final = 16
"""Calls at the same time: one that hangs in the kernel must not hold up the others."""


@define(eq=False)
class MountNamespace:
    """The namespace, and its threads, which are started as they are needed. Leave its context to end both."""

    _hidden: str = ""
    """A mount point of what shall not be seen inside; empty for none."""

    _opened: int = field(init=False)
    _threads: ThreadPoolExecutor = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._opened = self._make()
        self._threads = ThreadPoolExecutor(_THREADS, "sandboxes", self._enter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads, and with the last of them the namespace and its mounts."""
        self._threads.shutdown()
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1

    async def run(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function in a thread of the namespace. Not cancellable: what was begun is finished."""
        token = trio.lowlevel.current_trio_token()
        task = trio.lowlevel.current_task()

        def done(future: Future[_T]) -> None:
            result = outcome.capture(future.result)
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        self.submit(function, *arguments).add_done_callback(done)
        result: _T = await trio.lowlevel.wait_task_rescheduled(lambda _raise: trio.lowlevel.Abort.FAILED)
        return result

    def submit(self, function: Callable[..., _T], *arguments: object) -> Future[_T]:
        """Have a function called in a thread of the namespace, and go on."""
        return self._threads.submit(function, *arguments)

    def _make(self) -> int:
        """A new namespace, as an open file. A thread has to move into it and be gone: none else may."""
        opened: list[outcome.Maybe[int]] = []
        thread = threading.Thread(target=lambda: opened.append(outcome.capture(self._unshare)))
        thread.start()
        thread.join()
        return opened[0].unwrap()

    def _unshare(self) -> int:
        linux.unshare(linux.CLONE_NEWNS)
        # A slave: what is mounted outside later shows inside, where the machine has shared mounts; never the reverse.
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        if self._hidden:
            linux.unmount(self._hidden, linux.MNT_DETACH)
        return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def _enter(self) -> None:
        linux.unshare(linux.CLONE_FS)  # threads share their working directory otherwise, and setns(2) refuses
        linux.setns(self._opened, linux.CLONE_NEWNS)
