"""Where an agent is: `vsock:CID:PORT`, `unix:PATH`, `unix:PATH?port=N`."""

from __future__ import annotations

from attrs import frozen

from arcbox_client.errors import InvalidAddressError

FORMS = "vsock:CID:PORT, unix:PATH or unix:PATH?port=N"

_LARGEST_NUMBER = 0xFFFF_FFFE  # 0xFFFFFFFF is VMADDR_CID_ANY and VMADDR_PORT_ANY of vsock(7): nobody's address


@frozen
class VsockAddress:
    """A port of the guest with this CID."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


@frozen
class UnixAddress:
    """The path of a Unix stream socket: the agent's own, or, with `port`, that of a VMM.

    VMMs such as Firecracker and Cloud Hypervisor map the guest's vsock to one Unix socket. Whoever connects to it says
    which port of the guest is meant.
    """

    path: str
    port: int | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.port is None else f"unix:{self.path}?port={self.port}"


Address = VsockAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Read an address as people write it.

    Raises:
        InvalidAddressError: it has none of the three forms; the text says which there are.
    """
    family, _, rest = text.partition(":")
    if family == "vsock" and rest.count(":") == 1:
        numbers = [_number(part) for part in rest.split(":")]
        if None not in numbers:
            cid, port = (number for number in numbers if number is not None)
            return VsockAddress(cid, port)
    if family == "unix" and rest and "\0" not in rest:
        path, has_port, port_text = rest.rpartition("?port=")
        if not has_port:
            return UnixAddress(rest)
        port_number = _number(port_text)
        if path and port_number is not None:
            return UnixAddress(path, port_number)
    raise InvalidAddressError(f"{text!r} is not the address of an agent: use {FORMS}")


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()):
        return None
    number = int(text)
    return number if number <= _LARGEST_NUMBER else None
