"""Protobuf by hand, for payloads whose bulk goes uncopied from where it lies."""

from __future__ import annotations

from typing import Final

_LONGEST_VARINT: Final = 10
"""Bytes of a number of 64 bits."""


def varint(value: int, width: int = 1) -> bytes:
    """A protobuf varint of at least `width` bytes.

    More bytes than a value needs are legal: every parser skips groups of zero bits at the top.
    """
    encoded = bytearray()
    while value > 0x7F or len(encoded) < width - 1:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The varint at a position, and the position after it; where there is none, a position beyond the end."""
    value = shift = 0
    for index in range(position, min(position + _LONGEST_VARINT, len(data))):
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:
            return value, index + 1
        shift += 7
    return 0, len(data) + 1
