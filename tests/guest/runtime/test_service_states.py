"""What is told of a daemon, by what its supervisor knows and what its socket shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from arcbox_guest.daemons import Daemon, DaemonSpec
from arcbox_guest.runtime.probes import Liveness
from arcbox_guest.runtime.runtime import ServiceState

if TYPE_CHECKING:
    from pathlib import Path


async def answers() -> bool:
    await trio.lowlevel.checkpoint()
    return True


async def test_what_answers_is_coming_until_it_is_known_whether_it_is_supervised(tmp_path: Path) -> None:
    """One that ended before that would be missed: neither told of, nor started again."""
    daemon = Daemon(DaemonSpec(name="dockerd", argv=("/nowhere",), probe=answers, start_timeout=10, state_dir=tmp_path))
    assert ServiceState.of(daemon, Liveness.ANSWERS).coming
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run)
        await daemon.until_known()
        state = ServiceState.of(daemon, Liveness.ANSWERS)
        assert (state.ready, state.coming) == (True, False)
        nursery.cancel_scope.cancel()
