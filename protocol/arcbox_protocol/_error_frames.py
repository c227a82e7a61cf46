"""The payload of Error frames: code i32 | message length u32 | message in UTF-8, big-endian."""

from __future__ import annotations

from struct import Struct

from attrs import frozen

from arcbox_protocol.errors import InvalidPayloadError

_HEADER = Struct(">iI")


@frozen
class ErrorReply:
    """What an Error frame says: an `ErrorCode`, or for MmapReadFile an errno, and a sentence for people."""

    code: int
    message: str

    def encode(self) -> bytes:
        """The payload of an Error frame."""
        message = self.message.encode(errors="replace")
        return _HEADER.pack(self.code, len(message)) + message

    @classmethod
    def decode(cls, payload: bytes) -> ErrorReply:
        """Read the payload of an Error frame; bytes of the message that are not UTF-8 are replaced.

        Raises:
            InvalidPayloadError: the payload is shorter or longer than its header says.
        """
        if len(payload) < _HEADER.size:
            raise InvalidPayloadError(f"an Error payload has at least 8 bytes, this one has {len(payload)}")
        code, size = _HEADER.unpack_from(payload)
        message = payload[_HEADER.size :]
        if len(message) != size:
            raise InvalidPayloadError(f"an Error message of {size} bytes was announced, {len(message)} came")
        return cls(code, message.decode(errors="replace"))
