"""Loop devices: a file as a block device. See loop(4) and linux/loop.h."""

from __future__ import annotations

import errno
import os
import struct
from contextlib import contextmanager
from fcntl import ioctl
from typing import TYPE_CHECKING, Final

from arcbox_guest.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4

_LOOP_CONFIG: Final = struct.Struct("=II 52xI 176x 64x")
"""struct loop_config: the file, the block size (0 for 512); of the struct loop_info64 in it only lo_flags."""

_ATTEMPTS: Final = 16
"""Devices that others may take between our asking for a free one and taking it."""


@contextmanager
def attached(file: int) -> Iterator[str]:
    """The path of a read-only loop device for an open file; once the context is left, it lives while it is mounted.

    Raises:
        GuestError: there is none to be had.
    """
    device, path = _attach(file)
    try:
        yield path
    finally:
        os.close(device)


def _attach(file: int) -> tuple[int, str]:
    config = _LOOP_CONFIG.pack(file, 0, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise GuestError("no loop device is free: others take them all")
