"""What holds for every stream of frames, and for every stream of garbage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_protocol import Frame, FrameDecoder, encode_frame

if TYPE_CHECKING:
    from arcbox_protocol.errors import FrameError

MAX_FRAME = 4_096

FRAMES = st.builds(
    Frame,
    type=st.integers(0, 0xFFFF_FFFF),
    trace_id=st.text(max_size=40),
    payload=st.binary(max_size=400),
)
SHORT_FORMS = st.builds(
    lambda message_type, tail: (4 + len(tail)).to_bytes(4) + message_type.to_bytes(4) + tail,
    st.integers(0, 0xFFFF_FFFF),
    st.binary(max_size=1),
)
HEADERS = st.builds(  # near the limits, where the mistakes are
    lambda length, trace_size, rest: length.to_bytes(4) + bytes(4) + trace_size.to_bytes(2) + rest,
    st.one_of(st.integers(0, 12), st.integers(MAX_FRAME - 2, MAX_FRAME + 2), st.integers(0, 0xFFFF_FFFF)),
    st.one_of(st.integers(0, 12), st.integers(0, 0xFFFF)),
    st.binary(max_size=40),
)
GARBAGE = st.lists(
    st.one_of(FRAMES.map(lambda frame: encode_frame(*frame)), SHORT_FORMS, HEADERS, st.binary(max_size=40)),
    max_size=12,
).map(b"".join)
CHUNK_SIZES = st.lists(st.integers(0, 600), max_size=40)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def outcome(chunks: list[bytes]) -> tuple[list[Frame], tuple[type[FrameError], str] | None]:
    """The frames that a stream yields before it ends, and the fault that ended it early, if any."""
    decoder = FrameDecoder(MAX_FRAME)
    frames: list[Frame] = []
    for chunk in chunks:
        frames += decoder.feed(chunk)
        if decoder.fault is not None:
            return frames, (type(decoder.fault), str(decoder.fault))
    return frames, None


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=20), CHUNK_SIZES)
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames: list[Frame], sizes: list[int]) -> None:
    stream = b"".join(encode_frame(*frame) for frame in frames)
    assert outcome(cut(stream, sizes)) == (frames, None)


@settings(deadline=None)
@given(GARBAGE, CHUNK_SIZES)
def test_garbage_means_the_same_however_it_is_cut_and_raises_nothing(garbage: bytes, sizes: list[int]) -> None:
    whole = outcome([garbage])
    assert outcome(cut(garbage, sizes)) == whole
    assert outcome(cut(garbage, [1] * len(garbage))) == whole


@settings(deadline=None)
@given(GARBAGE)
def test_garbage_yields_no_more_bytes_than_it_has(garbage: bytes) -> None:
    frames, _ = outcome([garbage])
    assert sum(8 + len(frame.trace_id.encode()) + len(frame.payload) for frame in frames) <= len(garbage)
