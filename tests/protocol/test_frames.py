"""The frame decoder and encoder at their limits. The golden bytes are in test_golden_vectors.py."""

from __future__ import annotations

import tracemalloc

import pytest

from arcbox_protocol import (
    DEFAULT_MAX_FRAME,
    MAX_LENGTH,
    MAX_TRACE_ID,
    Frame,
    FrameDecoder,
    encode_frame,
    encode_header,
)
from arcbox_protocol.errors import (
    ErrorCode,
    FrameTooLargeError,
    LocalProtocolError,
    MalformedFrameError,
)

MEBIBYTE = 1 << 20


def header(length: int, message_type: int = 1, trace_size: int = 0) -> bytes:
    return length.to_bytes(4) + message_type.to_bytes(4) + trace_size.to_bytes(2)


def test_a_frame_of_exactly_the_limit_is_accepted() -> None:
    decoder = FrameDecoder(max_frame=100)
    frame = encode_frame(1, "t", bytes(93))  # 4 + 2 + 1 + 93
    assert [len(frame.payload) for frame in decoder.feed(frame)] == [93]
    assert decoder.fault is None


def test_a_frame_one_byte_over_the_limit_is_a_fault_as_soon_as_its_length_is_known() -> None:
    decoder = FrameDecoder(max_frame=100)
    assert decoder.feed(header(101)[:4]) == []
    assert isinstance(decoder.fault, FrameTooLargeError)
    assert decoder.fault.code == ErrorCode.TOO_LARGE
    assert str(decoder.fault) == "frame of 101 bytes is over the limit of 100 bytes"


@pytest.mark.parametrize("max_frame", [1, 4, 5])
def test_a_limit_below_the_short_forms_holds_for_them_too(max_frame: int) -> None:
    decoder = FrameDecoder(max_frame=max_frame)
    decoder.feed(header(max_frame + 1 if max_frame > 3 else 4)[:8])
    assert isinstance(decoder.fault, FrameTooLargeError)


def test_the_default_limit_is_16_mib() -> None:
    at_limit, over_limit = FrameDecoder(), FrameDecoder()
    at_limit.feed(header(16 * MEBIBYTE))
    over_limit.feed(header(16 * MEBIBYTE + 1))
    assert DEFAULT_MAX_FRAME == 16 * MEBIBYTE
    assert at_limit.fault is None
    assert isinstance(over_limit.fault, FrameTooLargeError)


@pytest.mark.parametrize("length", range(4))
def test_a_length_without_room_for_a_type_is_malformed(length: int) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(length.to_bytes(4)) == []
    assert isinstance(decoder.fault, MalformedFrameError)
    assert decoder.fault.code == ErrorCode.BAD_REQUEST


def test_a_trace_id_may_fill_the_frame_to_its_last_byte() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(header(6 + 3, trace_size=3) + b"abc") == [Frame(1, "abc", b"")]


@pytest.mark.parametrize("chunk_size", [1, 3, 10])
def test_a_trace_length_past_its_frame_is_malformed_before_the_frame_is_whole(chunk_size: int) -> None:
    decoder = FrameDecoder()
    data = header(1_000, trace_size=995)
    for start in range(0, len(data), chunk_size):
        assert decoder.fault is None
        assert decoder.feed(data[start : start + chunk_size]) == []
    assert isinstance(decoder.fault, MalformedFrameError)


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_fault_reads_the_same_wherever_the_header_is_cut(cut: int) -> None:
    decoder = FrameDecoder()
    data = header(1_000, trace_size=0xABCD)
    assert decoder.feed(data[:cut]) == []
    assert decoder.fault is None
    assert decoder.feed(data[cut:]) == []
    assert "a trace id of 43981 bytes runs past a frame of length 1000" in str(decoder.fault)


def test_the_frames_before_a_fault_are_returned_and_later_bytes_refused() -> None:
    decoder = FrameDecoder()
    good = encode_frame(1, "a", b"x") + encode_frame(2, "b")
    assert decoder.feed(good + header(2) + good) == [Frame(1, "a", b"x"), Frame(2, "b", b"")]
    fault = decoder.fault
    assert isinstance(fault, MalformedFrameError)
    with pytest.raises(MalformedFrameError) as raised:
        decoder.feed(good)
    assert raised.value is fault


def test_a_fault_in_the_rest_of_a_begun_frame_keeps_the_frames_that_it_completes() -> None:
    decoder = FrameDecoder()
    stream = encode_frame(1, "a", b"x") + header(0)
    assert decoder.feed(stream[:5]) == []
    assert decoder.feed(stream[5:]) == [Frame(1, "a", b"x")]
    assert isinstance(decoder.fault, MalformedFrameError)


@pytest.mark.parametrize("tail", [b"", b"\x2a"])
def test_many_short_frames_in_one_chunk_all_arrive(tail: bytes) -> None:
    one = (4 + len(tail)).to_bytes(4) + (2).to_bytes(4) + tail
    assert FrameDecoder().feed(one * 1_000) == [Frame(2, "", tail)] * 1_000


def test_a_begun_frame_is_partial_until_its_last_byte() -> None:
    decoder = FrameDecoder()
    data = encode_frame(1, "t", b"payload")
    for index in range(len(data)):
        assert decoder.has_partial == (index > 0)
        decoder.feed(data[index : index + 1])
    assert not decoder.has_partial


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_taken_from_any_buffer(kind: type[bytes | bytearray | memoryview]) -> None:
    data = encode_frame(1, "träce", b"payload")
    decoder = FrameDecoder()
    assert decoder.feed(kind(data[:12])) == []
    assert decoder.feed(kind(data[12:] + data)) == [Frame(1, "träce", b"payload")] * 2


def test_a_receive_buffer_may_be_reused_at_once() -> None:
    decoder = FrameDecoder()
    buffer = bytearray(encode_frame(1, "one", b"payload") + b"\0")
    frames = decoder.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    frames += decoder.feed(encode_frame(1, "two", b"other")[1:])
    assert frames == [Frame(1, "one", b"payload"), Frame(1, "two", b"other")]


@pytest.mark.parametrize("sent", [10, MEBIBYTE])
def test_only_what_has_come_is_allocated_whatever_the_header_claims(sent: int) -> None:
    chunk = bytes(65_536)
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.feed(header(15 * MEBIBYTE))
        for _ in range(sent // len(chunk)):
            decoder.feed(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.fault is None
    assert decoder.has_partial
    assert peak < 2 * sent + 65_536


def test_the_longest_trace_id_is_sent_and_one_byte_more_is_refused() -> None:
    longest = "é" * (MAX_TRACE_ID // 2) + "x"
    assert FrameDecoder().feed(encode_frame(1, longest)) == [Frame(1, longest, b"")]
    with pytest.raises(LocalProtocolError, match="at most 65535 bytes, this one has 65536"):
        encode_frame(1, "é" * (MAX_TRACE_ID // 2 + 1))


def test_a_trace_id_that_utf_8_has_no_bytes_for_is_our_own_fault() -> None:
    with pytest.raises(LocalProtocolError, match="UTF-8"):
        encode_frame(1, "\ud800")


def test_a_header_stands_before_a_payload_that_is_sent_from_elsewhere() -> None:
    payload = b"from a mapping"
    assert encode_header(7, "t", len(payload)) + payload == encode_frame(7, "t", payload)


def test_the_largest_payload_fits_its_length_field_and_one_byte_more_is_refused() -> None:
    largest = MAX_LENGTH - 4 - 2 - len("t")
    assert encode_header(1, "t", largest)[:4] == b"\xff\xff\xff\xff"
    with pytest.raises(LocalProtocolError, match="does not fit the length field"):
        encode_header(1, "t", largest + 1)


@pytest.mark.parametrize("message_type", [-1, 2**32])
def test_a_type_that_does_not_fit_its_field_is_our_own_mistake(message_type: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"^{message_type} is no message type"):
        encode_header(message_type, "a", 0)
