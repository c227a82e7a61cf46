"""A driver that is not loaded before it is needed.

It takes as long to import as half of the agent, and guests without sandboxes have no use for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from arcbox_guest.sandboxes.detached import DetachedProcess, DetachedSpec
    from arcbox_guest.sandboxes.driver import Driver, Process
    from arcbox_guest.sandboxes.model import ExecSpec, Spec, Statistics


@define(eq=False)
class OnDemandDriver:
    """Stands in for a driver that keeps all that it has of sandboxes in a directory."""

    name: str
    _data_dir: Path
    """The directory: where it is not there, there are no sandboxes."""

    _load: Callable[[], Driver]
    """Imports the driver, and makes one."""

    _loaded: Driver | None = field(init=False, default=None)

    async def check(self, spec: Spec) -> None:
        await self._driver.check(spec)

    async def create(self, spec: Spec) -> None:
        await self._driver.create(spec)

    def process(self, sandbox_id: str, command: ExecSpec) -> AbstractAsyncContextManager[Process]:
        return self._driver.process(sandbox_id, command)

    async def start_detached(self, sandbox_id: str, spec: DetachedSpec) -> DetachedProcess:
        return await self._driver.start_detached(sandbox_id, spec)

    async def detached(self, sandbox_id: str) -> Sequence[DetachedProcess]:
        return await self._driver.detached(sandbox_id)

    async def terminate(self, sandbox_id: str) -> None:
        await self._driver.terminate(sandbox_id)

    async def idle(self, sandbox_id: str) -> None:
        await self._driver.idle(sandbox_id)

    async def ended(self, sandbox_id: str) -> str:
        return await self._driver.ended(sandbox_id)

    async def stop(self, sandbox_id: str) -> None:
        await self._driver.stop(sandbox_id)

    async def destroy(self, sandbox_id: str) -> None:
        await self._driver.destroy(sandbox_id)

    async def statistics(self, sandbox_id: str) -> Statistics:
        return await self._driver.statistics(sandbox_id)

    def out_of_memory_kills(self, sandbox_id: str) -> int:
        return self._driver.out_of_memory_kills(sandbox_id)

    async def existing(self) -> Sequence[str]:
        if not self._data_dir.exists():
            await trio.lowlevel.checkpoint()
            return ()
        return await self._driver.existing()

    async def close(self) -> None:
        if self._loaded is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._loaded.close()

    @property
    def _driver(self) -> Driver:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded
