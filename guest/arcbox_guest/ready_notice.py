"""What a daemon says at the moment when it is ready: sd_notify(3)."""

from __future__ import annotations

import secrets
import socket
from contextlib import asynccontextmanager
from struct import Struct
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_DATAGRAM: Final = 4096
"""Bytes of a message that are looked at."""

_CREDENTIALS: Final = Struct("3i")
"""pid, uid and gid of who sends: unix(7)."""


@frozen
class ReadyNotice:
    """A socket to say it to."""

    address: str
    """For the environment variable NOTIFY_SOCKET: an abstract one, which has no file that could be left behind."""

    _socket: trio.socket.SocketType

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator[ReadyNotice]:
        """One for as long as the context lasts. Raises OSError."""
        name = f"arcbox-agent/{secrets.token_hex(8)}"
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            await listener.bind(f"\0{name}")
            yield cls(f"@{name}", listener)

    async def wait(self, pid: int) -> None:
        """Wait until this process says it."""
        said_by, message = 0, b""
        while said_by != pid or b"READY=1" not in message.splitlines():
            message, ancillary, _, _ = await self._socket.recvmsg(_DATAGRAM, socket.CMSG_SPACE(_CREDENTIALS.size))
            ((_, _, credentials),) = ancillary
            said_by, _, _ = _CREDENTIALS.unpack(credentials)
