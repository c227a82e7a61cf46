"""Listening sockets that systemd made: the protocol of sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from arcbox_agent.addresses import UnixAddress, VsockAddress
from arcbox_agent.listeners import SocketListener

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FIRST: Final = 3
"""SD_LISTEN_FDS_START: passed descriptors are numbered from here."""


class PassedListenerError(Exception):
    """A descriptor was passed that the agent can't serve on."""


def passed_listeners(environ: MutableMapping[str, str] = os.environ, *, first: int = _FIRST) -> list[SocketListener]:
    """Take over the sockets that the service manager passed, so that no child inherits them.

    Raises:
        PassedListenerError: one of them is no listening vsock or Unix stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_take_over(descriptor) for descriptor in range(first, first + int(count))]


def _take_over(descriptor: int) -> SocketListener:
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise PassedListenerError(f"passed descriptor {descriptor} is no socket: {error.strerror}") from error
    listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.type != socket.SOCK_STREAM or not listens:
        raise _refused(passed, "is no listening stream socket")
    name = passed.getsockname()
    if passed.family == socket.AF_UNIX and name:
        # An abstract name begins with NUL; "@" is how people and systemd write it.
        address: UnixAddress | VsockAddress = UnixAddress(os.fsdecode(name).replace("\0", "@"))
    elif passed.family == socket.AF_VSOCK:
        cid, port = name
        address = VsockAddress(port, cid)
    else:
        raise _refused(passed, "is neither a vsock nor a named Unix socket")
    passed.setblocking(False)
    return SocketListener(passed, address)


def _refused(passed: socket.socket, what: str) -> PassedListenerError:
    descriptor = passed.fileno()
    passed.close()
    return PassedListenerError(f"passed descriptor {descriptor} {what}: listen on a vsock or a Unix stream socket")
