"""Long-lived services: what runs beside the connections, and must not take them down when it fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from arcbox_guest.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

_HEALTHY_AFTER = 60.0
"""Seconds that a service must have run for its next failure to count as the first."""


async def supervise(name: str, service: Callable[[], Awaitable[None]]) -> None:
    """Run a service, and again whenever it fails, after a delay that grows; until it returns or is cancelled."""
    backoff = Backoff(first=0.5, longest=30.0)
    while True:
        started = trio.current_time()
        try:
            await service()
        except Exception:
            if trio.current_time() - started >= _HEALTHY_AFTER:
                backoff.reset()
            delay = backoff.next_delay()
            log.exception("service failed", extra={"service": name, "restart_in_seconds": delay})
            await trio.sleep(delay)
        else:
            return
