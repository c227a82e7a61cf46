"""Where the programs of the runtime are."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_guest.errors import NotSupportedError
from arcbox_guest.tools import SYSTEM_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTAINERD: Final = ("containerd", "containerd-shim-runc-v2", "runc")
"""What containerd needs, itself first."""

DOCKERD: Final = ("dockerd",)
"""docker-proxy and docker-init are looked for by dockerd itself, when it needs them."""


@frozen
class Programs:
    """The programs of one daemon, all from the same place."""

    path: str
    """Of the daemon itself."""

    search_path: str
    """For the daemon's PATH: the place, and after it the directories of the system."""

    def environment(self) -> Mapping[str, str]:
        """The agent's own environment with that PATH."""
        return {**os.environ, "PATH": self.search_path}


def find_programs(names: Sequence[str], places: Sequence[str]) -> Programs:
    """The first place that has all of these programs. Blocks.

    Args:
        names: the daemon's own first.
        places: directories; one may be several, joined by `:`, which are looked through together.

    Raises:
        NotSupportedError: no place has them all; the text says which are missing where.
    """
    missing = []
    for place in places:
        found = {name: shutil.which(name, path=place) for name in names}
        daemon = found[names[0]]
        if daemon is not None and all(found.values()):
            return Programs(daemon, f"{place}:{SYSTEM_PATH}")
        missing.append(f"{place} has no {', '.join(name for name, path in found.items() if path is None)}")
    raise NotSupportedError(f"{names[0]} can't be started: {'; '.join(missing) or 'no directory is set'}")
