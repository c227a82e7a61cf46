"""What is said between host and guest: frames, message types, protobuf messages, errors. Sans-I/O.

Bytes in, frames out (`FrameDecoder`); frames in, bytes out (`encode_frame`). The facts are those of ArcBox's
guest protocol, version 0.4.10, with what hosts up to 0.5 add to it.
"""

from __future__ import annotations

from arcbox_protocol._error_frames import ErrorReply
from arcbox_protocol._frames import (
    DEFAULT_MAX_FRAME,
    MAX_LENGTH,
    MAX_TRACE_ID,
    Buffer,
    Frame,
    FrameDecoder,
    encode_frame,
    encode_header,
)
from arcbox_protocol._messages import (
    EXCHANGES,
    LATER_REQUESTS,
    NOTIFICATIONS,
    PROTOCOL_VERSION,
    Exchange,
    MessageType,
    describe_type,
)
from arcbox_protocol._version import __version__
from arcbox_protocol.proto import arcbox_sandbox_v1_pb2 as arcbox_sandbox_v1
from arcbox_protocol.proto import arcbox_v1_pb2 as arcbox_v1
from arcbox_protocol.proto import sandbox_v1_pb2 as sandbox_v1

__all__ = [
    "DEFAULT_MAX_FRAME",
    "EXCHANGES",
    "LATER_REQUESTS",
    "MAX_LENGTH",
    "MAX_TRACE_ID",
    "NOTIFICATIONS",
    "PROTOCOL_VERSION",
    "Buffer",
    "ErrorReply",
    "Exchange",
    "Frame",
    "FrameDecoder",
    "MessageType",
    "__version__",
    "arcbox_sandbox_v1",
    "arcbox_v1",
    "describe_type",
    "encode_frame",
    "encode_header",
    "sandbox_v1",
]
