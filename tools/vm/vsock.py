"""AF_VSOCK between this machine and a guest, without any help of this machine's kernel.

A vhost-user back end for QEMU's `vhost-user-vsock-pci`. Clients connect to a Unix socket and say `CONNECT <port>`; the
answer is `OK <number>`, and what follows goes to that port of the guest, as with Firecracker's hybrid vsock. To the
guest they are CID 2. It may open no connections itself. Section 5.10 of the virtio specification (1.1) has the packets.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress
from enum import IntEnum
from itertools import count
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from tools.vm.vhost_user import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST_CID: Final = 2

_HEADER: Final = struct.Struct("<QQIIIHHIII")
"""CIDs of source and destination, their ports, length, type, operation, flags, and two numbers of credit."""

_STREAM: Final = 1
_RECEIVE, _TRANSMIT = 0, 1
"""The queues, as the guest calls them."""

_WINDOW: Final = 256 * 1024
"""Bytes that the guest may have under way in one connection."""

_LARGEST_PACKET: Final = 64 * 1024
_LONGEST_LINE: Final = 32
_CONNECT_PATIENCE: Final = 30.0
"""Seconds for the guest to answer a request for a connection."""

_NO_MORE_RECEIVE, _NO_MORE_SEND = 1, 2
"""Flags of SHUTDOWN."""


class _Op(IntEnum):
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


@define(eq=False)
class _Connection:
    """One client's."""

    client: trio.SocketStream
    host_port: int
    guest_port: int
    answered: trio.Event = field(factory=trio.Event)
    """The guest has accepted, or refused."""

    accepted: bool = False
    credit: trio.Event = field(factory=trio.Event)
    """Replaced whenever the guest has made room."""

    room: int = 0
    """The guest's whole buffer, in bytes."""

    taken: int = 0
    """Bytes that the guest's program has read, modulo 2^32."""

    sent: int = 0
    """Bytes that went to the guest, modulo 2^32."""

    forwarded: int = 0
    """Bytes that went to the client, modulo 2^32."""

    announced: int = 0
    """`forwarded`, as the guest was last told."""

    inbox: trio.MemorySendChannel[bytes] = field(init=False)
    outbox: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        # Bounded by the window: the guest sends no more than that.
        self.inbox, self.outbox = trio.open_memory_channel[bytes](_WINDOW)

    @property
    def available(self) -> int:
        """Bytes that may be sent to the guest."""
        return self.room - ((self.sent - self.taken) & 0xFFFF_FFFF)


@define(eq=False)
class VsockBackend:
    """Connects clients of a Unix socket to ports of one guest."""

    _guest_cid: int
    _device: Device | None = field(init=False, default=None)
    _connections: dict[tuple[int, int], _Connection] = field(init=False, factory=dict)
    """By port of the host and port of the guest."""

    _ports: Iterator[int] = field(init=False, factory=lambda: count(1024))
    _buffers: trio.Event = field(init=False, factory=trio.Event)
    """Replaced whenever the guest has offered buffers."""

    async def run(
        self,
        for_qemu: socket.socket,
        for_clients: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until QEMU ends; both sockets listen."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            nursery.start_soon(trio.serve_listeners, self._serve_client, [trio.SocketListener(_wrapped(for_clients))])
            connected, _ = await _wrapped(for_qemu).accept()
            raw = socket.socket(fileno=connected.detach())
            raw.setblocking(False)
            self._device = Device(
                raw, struct.pack("<Q", self._guest_cid), lambda number: nursery.start_soon(self._watch, number)
            )
            with raw:
                await self._device.serve()
            nursery.cancel_scope.cancel()

    async def _watch(self, number: int) -> None:
        """Serve one queue, from when it begins to run until it is stopped."""
        assert self._device is not None
        kick = self._device.queues[number].kick
        with suppress(trio.ClosedResourceError):
            while kick is not None:
                if number == _RECEIVE:
                    self._buffers.set()
                    self._buffers = trio.Event()
                else:
                    await self._receive_packets()
                await trio.lowlevel.wait_readable(kick)
                with suppress(BlockingIOError):
                    os.eventfd_read(kick)

    async def _receive_packets(self) -> None:
        assert self._device is not None
        queue = self._device.queues[_TRANSMIT]
        while (taken := queue.take()) is not None:
            buffer, parts = taken
            packet = b"".join(parts)
            queue.give_back(buffer, 0)
            await self._handle(packet)

    async def _handle(self, packet: bytes) -> None:
        _, _, guest_port, host_port, length, _type, operation, flags, room, taken = _HEADER.unpack_from(packet)
        connection = self._connections.get((host_port, guest_port))
        if connection is None:
            if operation != _Op.RST:
                await self._send(host_port, guest_port, _Op.RST)
            return
        connection.room, connection.taken = room, taken
        connection.credit.set()
        connection.credit = trio.Event()
        match operation:
            case _Op.RESPONSE:
                connection.accepted = True
                connection.answered.set()
            case _Op.RW:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    connection.inbox.send_nowait(packet[_HEADER.size : _HEADER.size + length])
            case _Op.CREDIT_REQUEST:
                await self._say(connection, _Op.CREDIT_UPDATE)
            case _Op.SHUTDOWN:
                if flags & _NO_MORE_SEND:
                    connection.inbox.close()
                if flags == _NO_MORE_SEND | _NO_MORE_RECEIVE:
                    self._forget(connection)
                    await self._say(connection, _Op.RST)
            case _Op.RST:
                self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._connections.pop((connection.host_port, connection.guest_port), None)
        connection.inbox.close()
        connection.answered.set()
        connection.credit.set()

    async def _say(self, connection: _Connection, operation: _Op, data: bytes = b"", flags: int = 0) -> None:
        connection.announced = connection.forwarded
        ports = connection.host_port, connection.guest_port
        await self._send(*ports, operation, data, flags=flags, forwarded=connection.forwarded)

    async def _send(  # noqa: PLR0913  the fields of a packet
        self, host_port: int, guest_port: int, operation: _Op, data: bytes = b"", *, flags: int = 0, forwarded: int = 0
    ) -> None:
        """Put a packet into the next buffer of the guest, in as many packets as it takes."""
        view = memoryview(data)
        while True:
            assert self._device is not None
            queue = self._device.queues[_RECEIVE]
            while (taken := queue.take()) is None:
                await self._buffers.wait()
            buffer, parts = taken
            size = min(len(view), sum(map(len, parts)) - _HEADER.size)
            header = _HEADER.pack(
                HOST_CID, self._guest_cid, host_port, guest_port, size, _STREAM, operation, flags, _WINDOW, forwarded
            )
            _scatter(header + view[:size], parts)
            queue.give_back(buffer, _HEADER.size + size)
            view = view[size:]
            if not view:
                return

    async def _serve_client(self, client: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, ValueError):
            guest_port = await _read_connect(client)
            connection = _Connection(client, next(self._ports), guest_port)
            self._connections[connection.host_port, guest_port] = connection
            try:
                if await self._open(connection):
                    await self._relay(connection)
            finally:
                known = self._connections.get((connection.host_port, guest_port)) is connection
                self._forget(connection)
                if known:
                    with trio.move_on_after(1) as scope:
                        scope.shield = True
                        await self._say(connection, _Op.RST)
        await trio.aclose_forcefully(client)

    async def _open(self, connection: _Connection) -> bool:
        """Ask the guest for the connection; whether it has accepted."""
        with trio.move_on_after(_CONNECT_PATIENCE):
            while self._device is None or self._device.queues[_RECEIVE].kick is None:
                await self._buffers.wait()
            await self._say(connection, _Op.REQUEST)
            await connection.answered.wait()
        if connection.accepted:
            await connection.client.send_all(b"OK %d\n" % connection.host_port)
        return connection.accepted

    async def _relay(self, connection: _Connection) -> None:
        """Both ways; until the guest closes, or the client has closed and the guest agrees."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._from_client, connection)
            await self._to_client(connection)
            if (connection.host_port, connection.guest_port) not in self._connections:
                nursery.cancel_scope.cancel()

    async def _from_client(self, connection: _Connection) -> None:
        flags = _NO_MORE_SEND
        try:
            while data := await connection.client.receive_some(_LARGEST_PACKET):
                await self._send_data(connection, data)
        except trio.BrokenResourceError:
            flags |= _NO_MORE_RECEIVE
        if _has_hung_up(connection.client.socket.fileno()):
            flags |= _NO_MORE_RECEIVE
        await self._say(connection, _Op.SHUTDOWN, flags=flags)

    async def _send_data(self, connection: _Connection, data: bytes) -> None:
        view = memoryview(data)
        while view:
            while connection.available <= 0:
                credit = connection.credit
                await credit.wait()
                if (connection.host_port, connection.guest_port) not in self._connections:
                    return
            size = min(len(view), connection.available)
            connection.sent = (connection.sent + size) & 0xFFFF_FFFF
            await self._say(connection, _Op.RW, bytes(view[:size]))
            view = view[size:]

    async def _to_client(self, connection: _Connection) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in connection.outbox:
                await connection.client.send_all(data)
                connection.forwarded = (connection.forwarded + len(data)) & 0xFFFF_FFFF
                if (connection.forwarded - connection.announced) & 0xFFFF_FFFF > _WINDOW // 2:
                    await self._say(connection, _Op.CREDIT_UPDATE)
            await connection.client.send_eof()


async def _read_connect(client: trio.SocketStream) -> int:
    """The port in `CONNECT <port>`; raises ValueError when it is something else."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
        received = await client.receive_some(1)  # and not one byte of what follows
        if not received:
            break
        line += received
    word, _, port = line.strip().partition(b" ")
    if word != b"CONNECT":
        raise ValueError(line)
    return int(port)


def _scatter(data: bytes, parts: list[memoryview]) -> None:
    for part in parts:
        size = min(len(part), len(data))
        part[:size] = data[:size]
        data = data[size:]


def _has_hung_up(descriptor: int) -> bool:
    """Whether a Unix socket's peer has closed it, and not only its sending half."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _wrapped(listening: socket.socket) -> trio.socket.SocketType:
    listening.setblocking(False)
    return trio.socket.from_stdlib_socket(listening)
