"""Waiting for storage that a request names, without becoming its hostage.

A thread that waits for a FUSE or virtiofs server can't be killed, and a process with such a thread does not end,
whatever it is sent. So what may not answer is first looked at by a child, which may hang for as long as it likes.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from arcbox_guest import storage_child
from arcbox_guest.cached_files import is_local_and_cached
from arcbox_guest.child import Child

if TYPE_CHECKING:
    from collections.abc import Collection

_KILLING: Final = 0.2
"""Seconds for a child that was killed to be gone. One that storage holds is left to itself."""


async def until_it_answers(paths: Collection[str]) -> None:
    """Wait until the storage of some paths has answered, be it with an error. Can be cancelled at any time.

    Raises:
        OSError: no child can be started.
    """
    doubtful = [path for path in paths if "\0" not in path and not is_local_and_cached(path.encode())]
    if not doubtful:
        await trio.lowlevel.checkpoint()
        return
    command = [sys.executable, "-I", "-S", storage_child.__file__, *doubtful]
    child = await trio.to_thread.run_sync(partial(Child.start, command))
    try:
        await child.wait()
    finally:
        with trio.CancelScope(shield=True):  # for a moment
            await child.close(_KILLING)
