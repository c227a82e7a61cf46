"""systemd, as far as a service hears of it."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Manager:
    """The service manager's end of its notification socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)

    def heard(self) -> list[str]:
        """Every variable that it was told since the last call."""
        variables = []
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                variables += self.socket.recv(4096).decode().split("\n")
        return variables

    def wait_for(self, variable: str) -> list[str]:
        """Every variable of the datagram that brings this one."""
        self.socket.settimeout(20)
        while variable not in (variables := self.socket.recv(4096).decode().split("\n")):
            pass
        return variables
