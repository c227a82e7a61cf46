"""What can go wrong on the wire, and whose fault it was.

`LocalProtocolError` is ours: something was about to be sent that the wire has no form for. All others are
the peer's. The codes are the HTTP-like ones of Error frames.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """The codes of Error frames. MmapReadFile alone reports errno values instead."""

    BAD_REQUEST = 400
    NOT_FOUND = 404
    CONFLICT = 409
    PRECONDITION_FAILED = 412
    TOO_LARGE = 413
    RANGE_NOT_SATISFIABLE = 416
    LOCKED = 423
    INTERNAL = 500
    NOT_SUPPORTED = 501
    UNAVAILABLE = 503
    TIMED_OUT = 504


class ProtocolError(Exception):
    """The base of all errors of this package."""


class LocalProtocolError(ProtocolError):
    """We tried to say something that the wire has no form for, such as a trace id of 70,000 bytes."""


class RemoteProtocolError(ProtocolError):
    """The peer said something that the protocol does not allow. `code` is what an Error frame says of it."""

    code = ErrorCode.BAD_REQUEST


class FrameError(RemoteProtocolError):
    """The byte stream can't be split into frames any further: the connection is over."""


class MalformedFrameError(FrameError):
    """A header that contradicts itself."""


class FrameTooLargeError(FrameError):
    """A header that announces more bytes than the inbound limit."""

    code = ErrorCode.TOO_LARGE


class InvalidPayloadError(RemoteProtocolError):
    """A payload that is not the protobuf message, or the Error layout, that its frame's type calls for."""
