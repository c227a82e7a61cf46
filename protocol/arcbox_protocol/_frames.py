"""Frames: the V2 framing of the wire, as an incremental decoder and an encoder. No I/O here.

A frame is, all integers big-endian::

    length u32 | type u32 | trace length u16 | trace id (UTF-8) | payload

`length` counts everything after itself. Two short forms are legal: length 4 has no trace field and an empty
payload; length 5 has one byte left, too short for a trace field, which is the payload.
"""

from __future__ import annotations

from functools import partial
from struct import Struct
from struct import error as StructError  # noqa: N812  its own name says nothing
from typing import NamedTuple

from attrs import define, field

from arcbox_protocol.errors import FrameError, FrameTooLargeError, LocalProtocolError, MalformedFrameError

Buffer = bytes | bytearray | memoryview

_HEADER = Struct(">IIH")
_LENGTH_SIZE = 4
_TYPE_SIZE = 4
_HEADER_SIZE = _HEADER.size
_FIXED_SIZE = _HEADER_SIZE - _LENGTH_SIZE  # what `length` counts besides the trace id and the payload

MAX_TRACE_ID = 0xFFFF
"""Bytes of UTF-8 that the trace field can hold."""

MAX_LENGTH = 0xFFFF_FFFF
"""The largest value of the length field, and of the type field."""

DEFAULT_MAX_FRAME = 16 * 1024 * 1024
"""The default inbound limit on the length field, in bytes."""


class Frame(NamedTuple):
    """One whole frame. A tuple because frames are the hot path: it is built, read once and dropped."""

    type: int
    """The message type as it was sent: it may be none of `MessageType`."""

    trace_id: str
    """Empty when the sender gave none, or one that is not UTF-8."""

    payload: bytes


_make_frame = partial(tuple.__new__, Frame)
"""What `Frame._make` does, without a call into Python."""

_unpack_header = _HEADER.unpack_from


@define(eq=False)
class FrameDecoder:
    """Turns a byte stream, cut anywhere, into frames.

    A peer's fault ends the stream for good: `feed` still returns the whole frames before it, `fault` says
    what it was, and any later `feed` raises it. Nothing of the size that a header merely claims is ever
    allocated: only bytes that have come are kept, and a length above the limit is a fault as soon as its
    four bytes are there.
    """

    _max_frame: int = DEFAULT_MAX_FRAME
    """The largest value, in bytes, that the length field may have."""

    fault: FrameError | None = field(init=False, default=None)

    is_between_frames: bool = field(init=False, default=True)
    """Whether the next byte, if it may come, begins a frame: there was no fault, and nothing is half there."""

    _partial: bytearray = field(init=False, factory=bytearray)
    _needed: int = field(init=False, default=0)

    @property
    def has_partial(self) -> bool:
        """Whether a frame was begun that is not whole yet."""
        return bool(self._partial)

    def feed(self, data: Buffer) -> list[Frame]:
        """Take the next bytes of the stream and return the frames that they complete, in order.

        Raises:
            FrameError: an earlier call met a fault.
        """
        data = bytes(data) if self.is_between_frames else self._resume(data)
        frames: list[Frame] = []
        position, end = 0, len(data)
        last_header = end - _HEADER_SIZE
        while True:
            while position <= last_header:
                length, message_type, trace_size = _unpack_header(data, position)
                payload_start = position + _HEADER_SIZE + trace_size
                frame_end = position + _LENGTH_SIZE + length
                if not payload_start <= frame_end <= end or length > self._max_frame:
                    break
                try:
                    trace_id = data[position + _HEADER_SIZE : payload_start].decode()
                except UnicodeDecodeError:
                    trace_id = ""
                frames.append(_make_frame((message_type, trace_id, data[payload_start:frame_end])))
                position = frame_end
            if position == end:
                return frames
            short_form = self._judge(data[position : position + _HEADER_SIZE], end - position)
            if short_form is None:
                break
            frames.append(short_form)
            position += _LENGTH_SIZE + _TYPE_SIZE + len(short_form.payload)
        self.is_between_frames = False
        if self.fault is None:
            self._partial += data[position:]
        return frames

    def _resume(self, data: Buffer) -> bytes:
        """Add to what is there of a frame; all of that, if it pays to look at it now, and else nothing."""
        if self.fault is not None:
            raise self.fault
        self._partial += data
        if len(self._partial) < self._needed:
            return b""
        begun, self._partial = bytes(self._partial), bytearray()
        self.is_between_frames = True
        return begun

    def _judge(self, head: bytes, available: int) -> Frame | None:
        """Say what it is that is no whole frame in its full form.

        Args:
            head: its first bytes, as many of a header's size as have come.
            available: how many bytes of it have come.

        Returns:
            The frame, if it is a whole one in a short form. If None, either there is a `fault`, or it pays to
            look again once `_needed` bytes have come.
        """
        self._needed = _LENGTH_SIZE
        if available < _LENGTH_SIZE:
            return None
        length = int.from_bytes(head[:_LENGTH_SIZE])
        self._needed += length
        if length > self._max_frame:
            self.fault = FrameTooLargeError(f"frame of {length} bytes is over the limit of {self._max_frame} bytes")
        elif length < _TYPE_SIZE:
            self.fault = MalformedFrameError(f"malformed frame: length {length} has no room for a type")
        elif length < _FIXED_SIZE:
            if available >= self._needed:
                message_type = int.from_bytes(head[_LENGTH_SIZE : _LENGTH_SIZE + _TYPE_SIZE])
                return Frame(message_type, "", head[_LENGTH_SIZE + _TYPE_SIZE : self._needed])
        elif available < _HEADER_SIZE:  # a trace length is judged as soon as it is there
            self._needed = _HEADER_SIZE
        else:
            trace_size = int.from_bytes(head[_LENGTH_SIZE + _TYPE_SIZE :])
            if trace_size > length - _FIXED_SIZE:
                self.fault = MalformedFrameError(
                    f"malformed frame: a trace id of {trace_size} bytes runs past a frame of length {length}"
                )
        return None


def encode_header(message_type: int, trace_id: str, payload_size: int) -> bytes:
    """The bytes of a frame before its payload, for payloads that are sent from where they lie.

    Args:
        message_type: the type field.
        trace_id: the trace id, at most `MAX_TRACE_ID` bytes of UTF-8.
        payload_size: how many bytes of payload will follow.

    Raises:
        LocalProtocolError: the trace id has lone surrogates, or something does not fit its field.
    """
    try:
        trace = trace_id.encode()
        trace_size = len(trace)
        return _HEADER.pack(_FIXED_SIZE + trace_size + payload_size, message_type, trace_size) + trace
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"the trace id {trace_id!r} can't be said in UTF-8") from error
    except StructError as error:
        raise LocalProtocolError(_too_large(message_type, trace_id, payload_size)) from error


def _too_large(message_type: int, trace_id: str, payload_size: int) -> str:
    """What does not fit into its field of a header, in words."""
    if (size := len(trace_id.encode())) > MAX_TRACE_ID:
        return f"a trace id has at most {MAX_TRACE_ID} bytes, this one has {size}"
    if not 0 <= message_type <= MAX_LENGTH:
        return f"{message_type} is no message type: it does not fit the type field of a frame"
    return f"a payload of {payload_size} bytes does not fit the length field of a frame"


def encode_frame(message_type: int, trace_id: str, payload: bytes = b"") -> bytes:
    """One whole frame. Raises `LocalProtocolError` as `encode_header` does."""
    return encode_header(message_type, trace_id, len(payload)) + payload
