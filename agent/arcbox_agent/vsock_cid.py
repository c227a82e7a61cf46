"""Whether a host can reach this guest over AF_VSOCK: a socket listens without that, too."""

from __future__ import annotations

import socket
import sys
from fcntl import ioctl
from pathlib import Path
from typing import Final

DEVICE: Final = Path("/dev/vsock")

TRANSPORT: Final = "vmw_vsock_virtio_transport"
"""The module of the guest's end of vsock, for everything that is no VMware or Hyper-V."""

_NO_CID: Final = (0xFFFF_FFFF, 0, 1)
"""VMADDR_CID_ANY, _HYPERVISOR and _LOCAL of vsock(7): none under which a host would find this machine."""


def read_cid(device: Path = DEVICE) -> int | None:
    """The CID of this machine: vsock(7). None when it has none; OSError when there is no such device."""
    with device.open("rb") as opened:
        answer = ioctl(opened, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
    cid = int.from_bytes(answer, sys.byteorder)
    return None if cid in _NO_CID else cid


def is_reachable() -> bool:
    """Whether this machine has a CID."""
    try:
        return read_cid() is not None
    except OSError:
        return False
