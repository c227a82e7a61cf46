"""The golden bytes of tests/vectors, every one, in both directions and however the stream is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from arcbox_protocol import EXCHANGES, NOTIFICATIONS, Frame, FrameDecoder, MessageType, encode_frame
from arcbox_protocol.errors import FrameTooLargeError, MalformedFrameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

VECTORS = Path(__file__).parents[1] / "vectors"
SHARED_VECTORS = Path(__file__).parents[3] / "shared" / "vectors"


class MessageVector(TypedDict):
    type: int
    name: str
    message: str | None
    fields: dict[str, object]
    trace_id: str
    payload_hex: str
    frame_hex: str


class FrameVector(TypedDict):
    name: str
    bytes_hex: str
    expect: str | dict[str, object] | list[dict[str, object]]


MESSAGES: list[MessageVector] = json.loads((VECTORS / "messages.json").read_text())
FRAMES: list[FrameVector] = json.loads((VECTORS / "frames.json").read_text())
WHOLE_FRAMES = [vector for vector in FRAMES if not isinstance(vector["expect"], str)]
STREAM = [bytes.fromhex(vector["frame_hex"]) for vector in MESSAGES]


def message_id(vector: MessageVector) -> str:
    return f"{vector['name']}-{MESSAGES.index(vector)}"


def frame_id(vector: FrameVector) -> str:
    return vector["name"]


def decode(chunks: Iterable[bytes]) -> list[Frame]:
    decoder = FrameDecoder()
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    assert decoder.fault is None
    assert not decoder.has_partial
    return frames


def whole(data: bytes) -> list[list[bytes]]:
    return [[data]]


def byte_by_byte(data: bytes) -> list[list[bytes]]:
    return [[data[index : index + 1] for index in range(len(data))]]


def cut_in_two(data: bytes) -> list[list[bytes]]:
    """All ways to cut; of a long one, those near its ends, where the header and the next frame are."""
    positions = [cut for cut in range(len(data)) if cut < 5_000 or cut > len(data) - 5_000]
    return [[data[:position], data[position:]] for position in positions]


WAYS = pytest.mark.parametrize("ways", [whole, byte_by_byte, cut_in_two])


def expected_frames(vector: FrameVector) -> list[Frame]:
    expect = vector["expect"]
    assert not isinstance(expect, str)
    return [as_frame(item) for item in (expect if isinstance(expect, list) else [expect])]


def as_frame(expect: dict[str, object]) -> Frame:
    message_type = expect.get("type", expect.get("unknown_type"))
    trace_id = expect.get("trace_id")
    if trace_id is None:  # the vector with the longest trace id gives its length: it is all x
        trace_id = "x" * int(str(expect["trace_id_length"]))
    # The vectors say nothing of the payload of frames whose type is refused: `abc`, and empty.
    payload = bytes.fromhex(str(expect.get("payload_hex", "616263" if "unknown_type" in expect else "")))
    assert isinstance(message_type, int)
    return Frame(message_type, str(trace_id), payload)


def message_class(vector: MessageVector) -> type[Message] | None:
    """What the tables of `protocol` have for this vector's type."""
    for exchange in EXCHANGES.values():
        if vector["type"] == exchange.request:
            return exchange.request_message
        if vector["type"] == exchange.reply:
            return exchange.reply_message
    return NOTIFICATIONS.get(vector["type"])


@pytest.mark.parametrize("vector", MESSAGES, ids=message_id)
def test_a_message_vector_encodes_to_its_bytes(vector: MessageVector) -> None:
    message = message_class(vector)
    payload = bytes.fromhex(vector["payload_hex"])
    if message is not None:
        assert ParseDict(vector["fields"], message()).SerializeToString(deterministic=True) == payload
    frame = encode_frame(vector["type"], vector["trace_id"], payload)
    assert frame == bytes.fromhex(vector["frame_hex"])


@WAYS
@pytest.mark.parametrize("vector", MESSAGES, ids=message_id)
def test_a_message_vector_decodes_to_its_fields(
    vector: MessageVector, ways: Callable[[bytes], list[list[bytes]]]
) -> None:
    message = message_class(vector)
    for chunks in ways(bytes.fromhex(vector["frame_hex"])):
        (frame,) = decode(chunks)
        assert frame.type == vector["type"]
        assert frame.trace_id == vector["trace_id"]
        assert frame.payload.hex() == vector["payload_hex"]
        if message is not None:
            parsed = message.FromString(frame.payload)
            assert MessageToDict(parsed, preserving_proto_field_name=True) == vector["fields"]


@pytest.mark.parametrize("vector", MESSAGES, ids=message_id)
def test_a_message_vector_has_the_name_and_message_that_the_tables_have(vector: MessageVector) -> None:
    assert MessageType(vector["type"]).name == vector["name"]
    message = message_class(vector)
    ignored = vector["type"] == MessageType.GetSystemInfoRequest
    assert (message and message.DESCRIPTOR.full_name) == (None if ignored else vector["message"])


@WAYS
def test_all_message_vectors_stuck_together_decode_in_order(
    ways: Callable[[bytes], list[list[bytes]]],
) -> None:
    expected = [(vector["type"], vector["trace_id"], vector["payload_hex"]) for vector in MESSAGES]
    for chunks in ways(b"".join(STREAM)):
        assert [(frame.type, frame.trace_id, frame.payload.hex()) for frame in decode(chunks)] == expected


@WAYS
@pytest.mark.parametrize("vector", WHOLE_FRAMES, ids=frame_id)
def test_a_frame_vector_decodes_alone_and_with_the_next_stuck_to_it(
    vector: FrameVector, ways: Callable[[bytes], list[list[bytes]]]
) -> None:
    data = bytes.fromhex(vector["bytes_hex"])
    expected = expected_frames(vector)
    following = Frame(MessageType.PingRequest, "", b"\x0a\x05hello")
    for chunks in ways(data):
        assert decode(chunks) == expected
    for chunks in ways(data + STREAM[0]):
        assert decode(chunks) == [*expected, following]


@pytest.mark.parametrize("vector", WHOLE_FRAMES, ids=frame_id)
def test_a_frame_vector_in_the_full_form_encodes_to_its_bytes(vector: FrameVector) -> None:
    data = bytes.fromhex(vector["bytes_hex"])
    frames = expected_frames(vector)
    if int.from_bytes(data[:4]) in (4, 5) or vector["name"] == "trace id that is not UTF-8 reads as empty":
        # What we send always has a trace field, and one that is UTF-8: these come back in the full form.
        assert decode([encode_frame(*frames[0])]) == frames
    else:
        assert b"".join(encode_frame(*frame) for frame in frames) == data


@WAYS
@pytest.mark.parametrize("vector", [v for v in FRAMES if isinstance(v["expect"], str)], ids=frame_id)
def test_a_frame_vector_that_is_at_fault_or_unfinished_yields_no_frame(
    vector: FrameVector, ways: Callable[[bytes], list[list[bytes]]]
) -> None:
    faults = {"malformed": MalformedFrameError, "too large": FrameTooLargeError, "incomplete": type(None)}
    for chunks in ways(bytes.fromhex(vector["bytes_hex"])):
        decoder = FrameDecoder()
        for chunk in chunks:
            if decoder.fault is None:
                assert decoder.feed(chunk) == []
        assert type(decoder.fault) is faults[str(vector["expect"])]
        assert decoder.has_partial == (vector["expect"] == "incomplete")


@pytest.mark.skipif(not SHARED_VECTORS.is_dir(), reason="there is no ../shared beside this clone")
def test_the_vectors_are_those_of_the_shared_directory() -> None:
    for shared in SHARED_VECTORS.iterdir():
        assert (VECTORS / shared.name).read_bytes() == shared.read_bytes(), f"{shared.name} differs"
