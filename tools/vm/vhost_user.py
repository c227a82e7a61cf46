"""The back end's side of vhost-user, for a device with two split virtqueues: guest memory, rings, who wakes whom.

QEMU's page "Vhost-user Protocol" has the messages, section 2.6 of the virtio specification (1.1) the rings. Indirect
descriptors and event indexes are not offered.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_HEADER: Final = struct.Struct("<III")
"""Request, flags, size of the payload."""

_REPLY_FLAGS: Final = 0x5
"""Version 1, and the bit of a reply."""

_FEATURES: Final = 1 << 32 | 1 << 30
"""VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES."""

_PROTOCOL_FEATURES: Final = 1 << 9
"""VHOST_USER_PROTOCOL_F_CONFIG: QEMU asks for the device's configuration space."""

_REGION: Final = struct.Struct("<QQQQ")
"""Guest address, size, address in QEMU, offset in the descriptor."""

_DESCRIPTOR: Final = struct.Struct("<QIHH")
"""Guest address, length, flags, index of the next one."""

_HAS_NEXT: Final = 1
_MOST_DESCRIPTORS: Final = 8
"""Passed with one message: QEMU passes one for each region of memory."""


class _Request(IntEnum):
    GET_FEATURES = 1
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    GET_QUEUE_NUM = 17
    GET_CONFIG = 24


@frozen
class _Region:
    guest: int
    size: int
    qemu: int
    offset: int
    mapping: mmap.mmap


@define(eq=False)
class GuestMemory:
    """The memory of the guest, mapped from the descriptors that QEMU passes."""

    _regions: list[_Region] = field(factory=list)

    def map(self, payload: bytes, descriptors: Sequence[int]) -> None:
        """Map what a SET_MEM_TABLE message lists; closes the descriptors."""
        self._regions.clear()
        for number, descriptor in enumerate(descriptors):
            guest, size, qemu, offset = _REGION.unpack_from(payload, 8 + number * _REGION.size)
            self._regions.append(_Region(guest, size, qemu, offset, mmap.mmap(descriptor, size + offset)))
            os.close(descriptor)

    def at_guest(self, address: int, length: int) -> memoryview:
        """Bytes by an address of the guest's."""
        for region in self._regions:
            if region.guest <= address and address + length <= region.guest + region.size:
                start = address - region.guest + region.offset
                return memoryview(region.mapping)[start : start + length]
        raise ValueError(f"the guest names {length} bytes at {address:#x}: not its memory")

    def at_qemu(self, address: int, length: int) -> memoryview:
        """Bytes by an address of QEMU's, as rings are given."""
        for region in self._regions:
            if region.qemu <= address and address + length <= region.qemu + region.size:
                start = address - region.qemu + region.offset
                return memoryview(region.mapping)[start : start + length]
        raise ValueError(f"QEMU names a ring at {address:#x}: not the guest's memory")


@define(eq=False)
class Queue:
    """One virtqueue: buffers that the guest offers, and gets back."""

    _memory: GuestMemory
    size: int = 0
    next: int = 0
    """Index in the ring of the next buffer that the guest offers."""

    kick: int | None = None
    """An eventfd: the guest has offered buffers."""

    call: int | None = None
    """An eventfd: buffers were given back."""

    _rings: tuple[memoryview, memoryview, memoryview] | None = None
    """Descriptors, available, used."""

    def place(self, descriptors: int, used: int, available: int) -> None:
        """Find the rings by QEMU's addresses."""
        self._rings = (
            self._memory.at_qemu(descriptors, 16 * self.size),
            self._memory.at_qemu(available, 4 + 2 * self.size),
            self._memory.at_qemu(used, 4 + 8 * self.size),
        )

    def stop(self) -> int:
        """Forget the rings; returns the index of the guest's next buffer."""
        self._rings = None
        for descriptor in (self.kick, self.call):
            if descriptor is not None:
                trio.lowlevel.notify_closing(descriptor)
                os.close(descriptor)
        self.kick = self.call = None
        return self.next

    def take(self) -> tuple[int, list[memoryview]] | None:
        """The next buffer that the guest offers, as its id and its parts; None if there is none."""
        if self._rings is None or self.kick is None:
            return None
        descriptors, available, _used = self._rings
        (offered,) = struct.unpack_from("<H", available, 2)
        if self.next == offered:
            return None
        (head,) = struct.unpack_from("<H", available, 4 + 2 * (self.next % self.size))
        self.next = (self.next + 1) & 0xFFFF
        parts, index, flags = list[memoryview](), head, _HAS_NEXT
        while flags & _HAS_NEXT:
            address, length, flags, following = _DESCRIPTOR.unpack_from(descriptors, 16 * index)
            parts.append(self._memory.at_guest(address, length))
            index = following
        return head, parts

    def give_back(self, buffer: int, written: int) -> None:
        """Return a buffer by its id, of which so many bytes were written, and tell the guest."""
        assert self._rings is not None, "give_back() follows take()"
        used = self._rings[2]
        (index,) = struct.unpack_from("<H", used, 2)
        struct.pack_into("<II", used, 4 + 8 * (index % self.size), buffer, written)
        struct.pack_into("<H", used, 2, (index + 1) & 0xFFFF)
        if self.call is not None:
            os.eventfd_write(self.call, 1)


@define(eq=False)
class Device:
    """A device with two queues, as QEMU sets it up over a Unix socket."""

    _connection: socket.socket
    """From QEMU; non-blocking."""

    _config: bytes
    """The configuration space."""

    _on_start: Callable[[int], None]
    """Called with the number of a queue that begins to run."""

    queues: tuple[Queue, Queue] = field(init=False)
    _memory: GuestMemory = field(init=False, factory=GuestMemory)

    def __attrs_post_init__(self) -> None:
        self.queues = (Queue(self._memory), Queue(self._memory))

    async def serve(self) -> None:
        """Do what QEMU says, until it hangs up."""
        with suppress(ConnectionResetError, BrokenPipeError):
            while True:
                await trio.lowlevel.wait_readable(self._connection)
                header, descriptors, _flags, _ = socket.recv_fds(self._connection, _HEADER.size, _MOST_DESCRIPTORS)
                if not header:
                    return
                number, _flags, size = _HEADER.unpack(header)
                payload = self._connection.recv(size) if size else b""  # QEMU sends a message in one piece
                if (answer := self._answer(number, payload, descriptors)) is not None:
                    self._connection.send(_HEADER.pack(number, _REPLY_FLAGS, len(answer)) + answer)

    def _answer(self, number: int, payload: bytes, descriptors: Sequence[int]) -> bytes | None:
        match number:
            case _Request.GET_FEATURES:
                return struct.pack("<Q", _FEATURES)
            case _Request.GET_PROTOCOL_FEATURES:
                return struct.pack("<Q", _PROTOCOL_FEATURES)
            case _Request.GET_QUEUE_NUM:
                return struct.pack("<Q", len(self.queues))
            case _Request.GET_CONFIG:  # offset, size and flags come back before the bytes
                return payload[:12] + self._config.ljust(len(payload) - 12, b"\0")
            case _Request.GET_VRING_BASE:
                index, _ = struct.unpack("<II", payload)
                return struct.pack("<II", index, self.queues[index].stop())
            case _Request.SET_MEM_TABLE:
                self._memory.map(payload, descriptors)
            case _:
                self._set_up_ring(number, payload, descriptors)
        return None

    def _set_up_ring(self, number: int, payload: bytes, descriptors: Sequence[int]) -> None:
        match number:
            case _Request.SET_VRING_NUM:
                index, size = struct.unpack("<II", payload)
                self.queues[index].size = size
            case _Request.SET_VRING_BASE:
                index, base = struct.unpack("<II", payload)
                self.queues[index].next = base
            case _Request.SET_VRING_ADDR:
                index, _flags, table, used, available, _log = struct.unpack("<IIQQQQ", payload)
                self.queues[index].place(table, used, available)
            case _Request.SET_VRING_CALL:
                self.queues[payload[0]].call = descriptors[0] if descriptors else None
            case _Request.SET_VRING_KICK if descriptors:
                self.queues[payload[0]].kick = descriptors[0]
                self._on_start(payload[0])
            case _:  # errors are not told to anybody, and owner, features and enabling change nothing here
                for descriptor in descriptors:
                    os.close(descriptor)
