"""From an address to a connected socket."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import trio

from arcbox_client._transport import SocketTransport
from arcbox_client.addresses import UnixAddress
from arcbox_client.errors import ConnectError, ConnectTimedOutError, HandshakeError

if TYPE_CHECKING:
    from arcbox_client.addresses import Address

_BACKLOG_PAUSE = 0.002
"""Seconds between tries at a Unix socket whose backlog is full: the kernel has no way of waiting for room in it."""

_LONGEST_ANSWER = 128
"""Bytes of the line with which a VMM answers CONNECT; known ones are shorter than 16."""

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.ECONNREFUSED: "nobody listens there",
    errno.ECONNRESET: "nobody listens there, or too many connect at once",
    errno.ENODEV: "no guest has this CID, or this machine has no vsock",
    errno.EAFNOSUPPORT: "this kernel has no vsock",
    errno.EPROTOTYPE: "this is no stream socket",
}


async def dial(address: Address, timeout: float) -> SocketTransport:  # noqa: ASYNC109  it becomes an error of its own type
    """Connect to an agent, within `timeout` seconds.

    Raises:
        ConnectError: there is nobody, or nobody that we may talk to.
        ConnectTimedOutError: it took too long.
        HandshakeError: the VMM did not connect us to the port.
    """
    with trio.move_on_after(timeout):
        try:
            connected = await _connected_socket(address)
        except OSError as error:
            raise ConnectError(address, _reason(error)) from error
        return SocketTransport(connected)
    raise ConnectTimedOutError(address, f"no answer within {timeout:g} s")


async def _connected_socket(address: Address) -> socket.socket:
    unix = isinstance(address, UnixAddress)
    made = socket.socket(socket.AF_UNIX if unix else socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if isinstance(address, UnixAddress):
            await _connect(made, address.path)
            if address.port is not None:
                await _ask_for_port(made, address, address.port)
        else:
            await _connect(made, (address.cid, address.port))
    except BaseException:
        made.close()
        raise
    return made


async def _connect(connecting: socket.socket, target: str | tuple[int, int]) -> None:
    await trio.lowlevel.checkpoint()
    while (code := connecting.connect_ex(target)) == errno.EAGAIN:  # noqa: ASYNC110  nothing tells when there is room
        await trio.sleep(_BACKLOG_PAUSE)
    if code == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(connecting)
        code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def _ask_for_port(connected: socket.socket, address: Address, port: int) -> None:
    """The host's side of hybrid vsock: `CONNECT <port>`, answered `OK <number>`, then the guest's bytes."""
    try:
        connected.send(b"CONNECT %d\n" % port)  # the first bytes on a fresh socket: they fit
        line = await _receive_line(connected)
    except (BrokenPipeError, ConnectionResetError):
        line = b""
    if not line:
        raise HandshakeError(address, f"the VMM closed the connection: nobody listens on port {port} of the guest")
    word, _, number = line.strip().partition(b" ")
    if not line.endswith(b"\n") or word != b"OK" or not number.isdigit():
        raise HandshakeError(address, f"CONNECT {port} was answered {line!r} in place of 'OK <number>'")


async def _receive_line(connected: socket.socket) -> bytes:
    """A line, and not one byte of what follows it; cut short where it is too long or the stream ends."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_ANSWER:
        await trio.lowlevel.wait_readable(connected)
        ahead = connected.recv(_LONGEST_ANSWER - len(line), socket.MSG_PEEK)
        if not ahead:
            break
        line += connected.recv(ahead.find(b"\n") + 1 or len(ahead))
    return line


def _reason(error: OSError) -> str:
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return (error.strerror or str(error)).lower()
