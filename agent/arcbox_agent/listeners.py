"""Where connections come from: listening sockets, and the filters around them that say who may connect."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio
from attrs import define, field, frozen

from arcbox_agent.addresses import Address, UnixAddress, VsockAddress
from arcbox_guest.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Container

log = logging.getLogger(__name__)

_BACKLOG = 1024
"""A vsock peer is reset at once when the backlog is full, so it is as long as there may be connections."""

_OF_ONE_CONNECTION = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)
"""Errors of accept(2) of one connection, its pending network error or a firewall's refusal: keep accepting."""

_OF_THE_SOCKET = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK})
"""Errors of accept(2) that say that this socket does not listen, and never will."""

_UCRED = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


@frozen
class Peer:
    """The other end of a connection that was accepted."""

    description: str
    """Who it is, for the log."""

    cid: int | None = None
    """Of a vsock peer."""

    uid: int | None = None
    """Of a Unix socket's peer."""


class Listener(Protocol):
    """Where connections come from."""

    @property
    def address(self) -> Address:
        """Where it listens."""

    async def accept(self) -> tuple[socket.socket, Peer]:
        """The next connection.

        Raises:
            OSError: the socket does not listen any more.
        """

    def close(self) -> None:
        """Listen no more."""


@define(eq=False)
class SocketListener:
    """A listening socket, which it owns; and the file of a Unix socket that it made."""

    _socket: socket.socket
    address: Address
    _owned_file: tuple[int, int] | None = None
    """Device and inode of the Unix socket's file, if that goes away with the listener."""

    _backoff: Backoff = field(init=False, factory=lambda: Backoff(first=0.05, longest=1.0))

    async def accept(self) -> tuple[socket.socket, Peer]:
        while True:
            try:
                connected, peer_address = self._socket.accept()
                self._backoff.reset()
                return connected, _identify(connected, peer_address)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                await self._get_over(error)

    async def _get_over(self, error: OSError) -> None:
        """Wait before the next try: with back-off for a resource that is used up (EMFILE), or an unknown error."""
        if error.errno in _OF_THE_SOCKET:
            raise error
        if error.errno in _OF_ONE_CONNECTION:
            await trio.lowlevel.checkpoint()
            return
        delay = self._backoff.next_delay()
        log.error(
            "no connection can be accepted now",
            extra={"listener": str(self.address), "error": str(error), "retry_in_seconds": delay},
        )
        await trio.sleep(delay)

    def close(self) -> None:
        # The file first: as long as the socket is open, no successor's file can have the same inode.
        if self._owned_file is not None and isinstance(self.address, UnixAddress):
            with suppress(OSError):
                found = os.lstat(self.address.path)
                if (found.st_dev, found.st_ino) == self._owned_file:  # not that of a successor
                    Path(self.address.path).unlink()
            self._owned_file = None
        self._socket.close()


@frozen
class PeerFilter:
    """Closes the connections of peers that are not allowed: nothing behind it sees them."""

    _listener: Listener
    _is_allowed: Callable[[Peer], bool]
    _why_not: str
    """Why the others are refused, for the log."""

    @property
    def address(self) -> Address:
        return self._listener.address

    async def accept(self) -> tuple[socket.socket, Peer]:
        while True:
            connected, peer = await self._listener.accept()
            if self._is_allowed(peer):
                return connected, peer
            connected.close()
            log.warning("peer refused", extra={"peer": peer.description, "reason": self._why_not})
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._listener.close()


def guarded(listener: Listener, allowed_cids: Container[int]) -> Listener:
    """The listener with the filter for its kind of address.

    AF_VSOCK has no namespaces: without one, any container of the guest could connect over the loopback.
    """
    if isinstance(listener.address, UnixAddress):
        users = {0, os.geteuid()}
        return PeerFilter(listener, lambda peer: peer.uid in users, "its user is neither root nor the agent's")
    return PeerFilter(listener, lambda peer: peer.cid in allowed_cids, "its CID is not allowed")


def listen(address: Address) -> SocketListener:
    """Listen on an address. A Unix socket that nobody listens on any more is replaced.

    Raises:
        OSError: it can't be done, now.
    """
    if isinstance(address, VsockAddress):
        return _listen_vsock(address)
    try:
        return _listen_unix(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_stale(address.path):
            raise
        Path(address.path).unlink()
        return _listen_unix(address)


def _listen_vsock(address: VsockAddress) -> SocketListener:
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.bind((address.cid, address.port))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return SocketListener(listening, address)


def _listen_unix(address: UnixAddress) -> SocketListener:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        os.fchmod(listening.fileno(), 0o600)  # before the bind: the file is never there with another mode
        listening.bind(address.path)
        made = os.lstat(address.path)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return SocketListener(listening, address, (made.st_dev, made.st_ino))


def _is_stale(path: str) -> bool:
    """Whether a path is a Unix socket that nobody listens on. Any other file refuses connections, too."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


async def listen_patiently(address: Address) -> SocketListener:
    """Listen on an address; when that fails, say so and try again until it works."""
    backoff = Backoff(first=0.1, longest=5.0)
    while True:
        try:
            return listen(address)
        except OSError as error:
            delay = backoff.next_delay()
            log.warning(
                "can't listen, will try again",
                extra={"listener": str(address), "error": str(error), "retry_in_seconds": delay},
            )
            await trio.sleep(delay)


def _identify(connected: socket.socket, peer_address: Any) -> Peer:  # noqa: ANN401  its type depends on the family
    if isinstance(peer_address, tuple):
        cid, port = peer_address
        return Peer(f"vsock:{cid}:{port}", cid=cid)
    pid, uid, _gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(f"unix:pid={pid},uid={uid}", uid=uid)
