"""Byte streams to an agent: a socket connected to its address, or any `trio.abc.Stream`.

The socket tries each call before it waits: only EAGAIN enters Trio's scheduler.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Protocol

import trio

from arcbox_client.addresses import UnixAddress
from arcbox_client.errors import ConnectError, ConnectTimedOutError, HandshakeError

if TYPE_CHECKING:
    from arcbox_client.addresses import Address
    from arcbox_protocol import Buffer

RECEIVE_SIZE = 256 * 1024
"""Bytes asked of one recv(2)."""

_CALLS_BETWEEN_CHECKPOINTS = 16
"""Receives that may succeed without waiting before other tasks of this process get a turn."""

_BACKLOG_PAUSE = 0.002
"""Seconds between tries at a Unix socket whose backlog is full: connect(2) says EAGAIN, and no event follows."""

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


class ByteStream(Protocol):
    """A byte stream to one agent. One task receives, one sends."""

    async def receive(self) -> bytes | bytearray:
        """The next bytes; empty at the end of the stream. Raises `trio.BrokenResourceError`."""

    def send_nowait(self, data: Buffer) -> int:
        """Send what can be sent without waiting; returns the number of bytes. Raises `trio.BrokenResourceError`."""

    async def send(self, data: Buffer) -> None:
        """Send all of `data`. Raises `trio.BrokenResourceError`."""

    async def aclose(self) -> None:
        """Close it without waiting for anything."""


class SocketByteStream:
    """A connected stream socket, which it owns."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._receives = 0

    async def receive(self) -> bytes:
        self._receives += 1
        if self._receives % _CALLS_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._socket.recv(RECEIVE_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise trio.BrokenResourceError(_strerror(error)) from error

    def send_nowait(self, data: Buffer) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(_strerror(error)) from error

    async def send(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.send_nowait(rest) :]
            if rest:
                await trio.lowlevel.wait_writable(self._socket)

    async def aclose(self) -> None:
        self._socket.close()


class TrioByteStream:
    """Any byte stream of Trio's, which it owns."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self) -> bytes | bytearray:
        return await self._stream.receive_some()

    def send_nowait(self, data: Buffer) -> int:  # noqa: ARG002  the interface's
        return 0

    async def send(self, data: Buffer) -> None:
        await self._stream.send_all(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


async def dial(address: Address, timeout: float) -> SocketByteStream:  # noqa: ASYNC109  it becomes an error of its own type
    """Connect to an agent, within `timeout` seconds. Raises as `connect_socket`."""
    return SocketByteStream(await connect_socket(address, timeout))


async def connect_socket(address: Address, timeout: float) -> socket.socket:  # noqa: ASYNC109  it becomes an error of its own type
    """A socket, not blocking, that is connected to an address, within `timeout` seconds.

    Raises:
        ConnectError: nobody listens there, or nobody that we may talk to.
        ConnectTimedOutError: it took too long.
        HandshakeError: the VMM did not connect us to the port.
    """
    with trio.move_on_after(timeout):
        try:
            return await _connected_socket(address)
        except OSError as error:
            raise ConnectError(address, _REASONS.get(error.errno or 0) or _strerror(error)) from error
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


def _strerror(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
