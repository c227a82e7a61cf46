"""What a benchmark stands on: its servers, its directory, its core, and how long it may measure."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field, frozen

from bench import processes
from bench.client import connect
from bench.rounds import seconds_each

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bench.figures import Figure
    from bench.processes import Server

T = TypeVar("T")


@define
class Stage:
    """One benchmark's. What is entered here is left with it, the last thing first."""

    directory: Path
    rounds: int
    sample_seconds: float
    """How long one sample of something quick takes."""

    _stack: ExitStack = field(init=False, factory=ExitStack)

    @contextmanager
    def on(self, cores: set[int]) -> Iterator[None]:
        """Keep this process, and so all that it starts, on these cores for as long as the context lasts."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            with self._stack:
                yield
        finally:
            os.sched_setaffinity(0, before)

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that is left when the stage is."""
        return self._stack.enter_context(context)

    def agent(self) -> Server:
        """Start the agent."""
        return self.enter(processes.agent(self.directory))

    def peer(self, module: str, *arguments: str) -> Server:
        """Start one of `bench.peers`."""
        return self.enter(processes.peer(module, self.directory, *arguments))

    def connect(self, server: Server) -> socket.socket:
        """A connection that is closed before the server is ended."""
        return self.enter(connect(server.path))

    def seconds_each(self, work: Callable[[int], None]) -> Callable[[], float]:
        """A contender that does `work(count)`, and takes about `sample_seconds` for it."""
        return seconds_each(work, self.sample_seconds)


@frozen
class Bench:
    """Something that can be measured by itself."""

    name: str
    about: str
    run: Callable[[Stage], list[Figure]]
    pinned: bool = True
    """Whether both ends stay on one core: across cores every figure, the bare socket's too, is mostly noise."""
