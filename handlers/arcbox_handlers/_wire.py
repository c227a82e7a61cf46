"""Protobuf by hand, for payloads whose bulk goes uncopied from where it lies."""

from __future__ import annotations


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
