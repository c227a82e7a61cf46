"""The payload of MmapReadFileResponse, read by hand: through protobuf its 64 MiB would be copied twice more."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from arcbox_client.errors import ProtocolViolationError
from arcbox_protocol import arcbox_v1

_DATA_TAG = 0x0A  # field 1, length-delimited
_LONGEST_VARINT = 10


def parse_file_reply(payload: bytes) -> bytes:
    """The bytes of the file.

    An agent fills up with zeros what a file lost while it was being sent; `bytes_read` says how much is real.

    Raises:
        ProtocolViolationError: the payload is no MmapReadFileResponse.
    """
    start, end = _data_field(payload)
    try:
        rest = arcbox_v1.MmapReadFileResponse.FromString(payload[end:])
    except DecodeError as error:
        raise ProtocolViolationError(f"MmapReadFileRequest was answered with what does not parse: {error}") from error
    if rest.data:  # legal protobuf, though nobody sends it: the last field of a name counts
        return rest.data[: rest.bytes_read]
    return payload[start : min(end, start + rest.bytes_read)]


def _data_field(payload: bytes) -> tuple[int, int]:
    """Where the data lies; an empty range at the start where it is not the first field, or not whole."""
    if not payload or payload[0] != _DATA_TAG:
        return 0, 0
    size = 0
    for index, byte in enumerate(payload[1 : 1 + _LONGEST_VARINT]):
        size |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            start = index + 2
            return (start, start + size) if start + size <= len(payload) else (0, 0)
    return 0, 0
