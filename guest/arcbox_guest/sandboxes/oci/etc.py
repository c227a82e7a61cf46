"""Files in a sandbox's /etc that no image can know: its name, its addresses, its name servers.

Written into the overlay, as files of that sandbox: the image below stays as it is, and root of the sandbox may change
them. What a bind mount puts there comes later, and hides them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_guest.sandboxes.oci.root_files import opened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_LARGEST: Final = 64 * 1024
"""Bytes of the guest's resolv.conf that are copied."""


def files(name: str, *, address: str = "127.0.0.1", resolver: Sequence[str] | None = None) -> Mapping[str, str]:
    """What the files say, by name.

    Args:
        name: of the sandbox, as hostname(1) prints it.
        address: that its name stands for, inside.
        resolver: the lines of its resolv.conf; None for those of the guest.
    """
    resolv_conf = _resolv_conf() if resolver is None else "".join(f"{line}\n" for line in resolver)
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{name}\n"
    return {"hosts": hosts, "hostname": f"{name}\n", "resolv.conf": resolv_conf}


def write(root: int, contents: Mapping[str, str]) -> None:
    """Put files into /etc, and the link /etc/mtab where nothing has that name.

    Args:
        root: the open root directory of the sandbox.
        contents: what they say, by name.

    Raises:
        OSError: there is no room for them.
    """
    with suppress(FileExistsError):
        os.mkdir("etc", 0o755, dir_fd=root)
    try:
        with opened(root, "/etc", os.O_RDONLY | os.O_DIRECTORY) as etc:
            for name, text in contents.items():
                _replace(etc, name, text)
            with suppress(FileExistsError):
                os.symlink("/proc/mounts", "mtab", dir_fd=etc)
    except (NotADirectoryError, FileNotFoundError):
        return  # the image has something else there, or a link that leads nowhere


def _replace(directory: int, name: str, text: str) -> None:
    """A new file in place of whatever has that name, a link for example."""
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=directory)
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o644)  # whatever the agent's umask is
        file.write(text)


def _resolv_conf() -> str:
    """The guest's own."""
    try:
        with _RESOLV_CONF.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""
