"""Whether dockerd has come back to a containerd that was started again: it does so by a back-off of its own."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from arcbox_guest.daemons import DaemonStatus

if TYPE_CHECKING:
    from arcbox_guest.daemons import Daemon
    from arcbox_guest.runtime.docker_api import DockerApi

_POLL: Final = 0.2
"""Seconds between two questions, for each of which dockerd also executes runc."""

_DEADLINE: Final = 2.0
"""Seconds for an answer."""


@define(eq=False)
class ContainerdLink:
    """Dockerd's connection to containerd. `run` watches it."""

    _containerd: Daemon
    _dockerd: Daemon
    _docker: DockerApi
    lost: bool = field(init=False, default=False)
    """Whether containerd has ended, and dockerd has not reached the next one yet."""

    async def run(self) -> None:
        """Watch it, for ever."""
        while True:
            await self._until_containerd_is(DaemonStatus.FAILED, DaemonStatus.STOPPING)
            self.lost = True
            await self._until_containerd_is(DaemonStatus.READY)
            while self._dockerd.status is DaemonStatus.READY:  # a new one connects before it is
                if await self._reaches():
                    break
                await trio.sleep(_POLL)
            self.lost = False

    async def _until_containerd_is(self, *statuses: DaemonStatus) -> None:
        while self._containerd.status not in statuses:
            await self._containerd.changed()

    async def _reaches(self) -> bool:
        """Whether dockerd's answer to `GET /version` has the version of containerd, which it asks it for."""
        with trio.move_on_after(_DEADLINE), suppress(OSError, trio.BrokenResourceError, ValueError):
            version = await self._docker.get("/version")
            return any(component["Name"] == "containerd" for component in version["Components"])
        return False
