"""A driver that is not loaded before it is needed.

It takes as long to import as half of the agent, which holds up neither the start nor, later, the event loop.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from arcbox_guest.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from arcbox_guest.sandboxes.detached import DetachedProcess, DetachedSpec
    from arcbox_guest.sandboxes.driver import Driver, Process
    from arcbox_guest.sandboxes.model import ExecSpec, Spec, Statistics


@define(eq=False)
class OnDemandDriver:
    """Stands in for a driver that keeps all that it has of sandboxes in a directory."""

    name: str
    _data_dir: Path
    """The directory: each has one in its `sandboxes`."""

    _load: Callable[[], Driver]
    """Imports the driver, and makes one; called in a thread."""

    _loading: trio.Lock = field(init=False, factory=trio.Lock)
    _loaded: Driver | None = field(init=False, default=None)

    async def prepare(self) -> None:
        await (await self._driver()).prepare()

    async def check(self, spec: Spec) -> None:
        await (await self._driver()).check(spec)

    async def create(self, spec: Spec) -> Mapping[str, str]:
        return await (await self._driver()).create(spec)

    async def adopt(self, spec: Spec, facts: Mapping[str, str]) -> None:
        await (await self._driver()).adopt(spec, facts)

    @asynccontextmanager
    async def process(self, sandbox_id: str, command: ExecSpec) -> AsyncIterator[Process]:
        driver = await self._driver()
        async with driver.process(sandbox_id, command) as process:
            yield process

    async def start_detached(self, sandbox_id: str, spec: DetachedSpec) -> DetachedProcess:
        return await (await self._driver()).start_detached(sandbox_id, spec)

    async def detached(self, sandbox_id: str) -> Sequence[DetachedProcess]:
        return await (await self._driver()).detached(sandbox_id)

    def root(self, sandbox_id: str) -> AbstractContextManager[int]:
        if self._loaded is None:
            raise UnavailableError(f"sandbox {sandbox_id} does not run")
        return self._loaded.root(sandbox_id)

    def network_namespace(self, sandbox_id: str) -> AbstractContextManager[int]:
        if self._loaded is None:
            raise UnavailableError(f"sandbox {sandbox_id} does not run")
        return self._loaded.network_namespace(sandbox_id)

    async def pause(self, sandbox_id: str) -> None:
        await (await self._driver()).pause(sandbox_id)

    async def resume(self, sandbox_id: str) -> None:
        await (await self._driver()).resume(sandbox_id)

    def is_paused(self, sandbox_id: str) -> bool:
        return self._loaded is not None and self._loaded.is_paused(sandbox_id)

    async def terminate(self, sandbox_id: str) -> None:
        await (await self._driver()).terminate(sandbox_id)

    async def idle(self, sandbox_id: str) -> None:
        await (await self._driver()).idle(sandbox_id)

    async def ended(self, sandbox_id: str) -> str:
        return await (await self._driver()).ended(sandbox_id)

    async def stop(self, sandbox_id: str) -> None:
        await (await self._driver()).stop(sandbox_id)

    async def destroy(self, sandbox_id: str) -> None:
        await (await self._driver()).destroy(sandbox_id)

    async def statistics(self, sandbox_id: str) -> Statistics:
        return await (await self._driver()).statistics(sandbox_id)

    def out_of_memory_kills(self, sandbox_id: str) -> int:
        return self._loaded.out_of_memory_kills(sandbox_id) if self._loaded is not None else 0

    async def checkpoint(self, sandbox_id: str) -> tuple[str, ...]:
        return await (await self._driver()).checkpoint(sandbox_id)

    async def flatten(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        return await (await self._driver()).flatten(layers)

    async def remove_unused(self, used: Callable[[], Collection[str]]) -> None:
        if await trio.to_thread.run_sync(self._has_any, "layers", abandon_on_cancel=True):
            await (await self._driver()).remove_unused(used)

    async def listening(self, sandbox_id: str) -> set[int]:
        return await (await self._driver()).listening(sandbox_id)

    async def existing(self) -> Sequence[str]:
        if not await trio.to_thread.run_sync(self._has_any, "sandboxes", abandon_on_cancel=True):
            return ()
        return await (await self._driver()).existing()

    async def close(self) -> None:
        if self._loaded is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._loaded.close()

    async def _driver(self) -> Driver:
        async with self._loading:
            if self._loaded is None:
                self._loaded = await trio.to_thread.run_sync(self._load)
            return self._loaded

    def _has_any(self, kind: str) -> bool:
        """Whether there are sandboxes, or layers: each has a directory until nothing else is left of it."""
        try:
            return any((self._data_dir / kind).iterdir())
        except FileNotFoundError:
            return False
