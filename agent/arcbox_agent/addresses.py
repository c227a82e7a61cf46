"""Where the agent listens: `vsock:PORT`, `vsock:CID:PORT`, `unix:PATH`; and where its proxies connect to."""

from __future__ import annotations

import os
from ipaddress import ip_address

from attrs import frozen

CID_ANY = 0xFFFF_FFFF
"""VMADDR_CID_ANY of vsock(7): whatever CID this guest has."""

_LONGEST_PATH = 107
"""Bytes, and one more for the zero at the end: unix(7)."""


@frozen
class VsockAddress:
    """An AF_VSOCK port, on one CID of this guest or on any."""

    port: int
    cid: int = CID_ANY

    def __str__(self) -> str:
        return f"vsock:{self.port}" if self.cid == CID_ANY else f"vsock:{self.cid}:{self.port}"


@frozen
class UnixAddress:
    """The path of a Unix stream socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@frozen
class TcpAddress:
    """A TCP port of an IP address, to connect to."""

    ip: str
    port: int


Address = VsockAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Read an address as people write it.

    Raises:
        ValueError: it has none of the three forms, or its path is too long; the text says what there is.
    """
    family, _, rest = text.partition(":")
    numbers = rest.split(":")
    if family == "unix" and rest and "\0" not in rest:
        if len(os.fsencode(rest)) > _LONGEST_PATH:
            raise ValueError(f"{text!r} is too long: the path of a Unix socket has at most {_LONGEST_PATH} bytes")
        return UnixAddress(rest)
    if family == "vsock" and len(numbers) <= 2 and all(map(_is_number, numbers)):
        *cid, port = map(int, numbers)
        if all(n < CID_ANY for n in (*cid, port)):
            return VsockAddress(port, *cid)
    raise ValueError(f"{text!r} is not an address to listen on: use vsock:PORT, vsock:CID:PORT or unix:PATH")


def parse_target(text: str) -> UnixAddress | TcpAddress:
    """Read an address to connect to: `unix:PATH` or `tcp:IP:PORT`. Raises ValueError: it is neither."""
    if text.startswith("unix:/"):
        address = parse_address(text)
        if isinstance(address, UnixAddress):
            return address
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and _is_number(port) and 0 < int(port) < 2**16:
        return TcpAddress(str(ip_address(host.strip("[]"))), int(port))
    raise ValueError(f"{text!r} is neither unix:PATH nor tcp:IP:PORT")


def _is_number(text: str) -> bool:
    return len(text) <= len(str(CID_ANY)) and text.isascii() and text.isdecimal()
