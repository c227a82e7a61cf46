"""The payload of Error frames."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_protocol import ErrorReply
from arcbox_protocol.errors import InvalidPayloadError


def test_an_error_reply_is_laid_out_as_code_length_message() -> None:
    assert ErrorReply(404, "no é").encode() == b"\x00\x00\x01\x94\x00\x00\x00\x05no \xc3\xa9"


def test_a_negative_code_survives_both_ways() -> None:
    payload = b"\xff\xff\xff\xfe\x00\x00\x00\x00"
    assert ErrorReply(-2, "").encode() == payload
    assert ErrorReply.decode(payload) == ErrorReply(-2, "")


def test_a_message_that_is_not_utf_8_is_still_read() -> None:
    payload = b"\x00\x00\x01\xf4\x00\x00\x00\x05disk\xff"
    assert ErrorReply.decode(payload) == ErrorReply(500, "disk\N{REPLACEMENT CHARACTER}")


def test_a_message_with_a_byte_of_a_file_name_that_is_not_utf_8_is_still_sent() -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert ErrorReply.decode(ErrorReply(2, f"{name}: no such file").encode()).message == "caf?: no such file"


@pytest.mark.parametrize("size", range(8))
def test_a_payload_without_a_whole_header_is_refused(size: int) -> None:
    with pytest.raises(InvalidPayloadError, match=f"at least 8 bytes, this one has {size}"):
        ErrorReply.decode(bytes(size))


@pytest.mark.parametrize("message", [b"", b"four", b"sixsix"])
def test_a_message_of_another_size_than_announced_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidPayloadError, match=f"5 bytes was announced, {len(message)} came"):
        ErrorReply.decode(b"\x00\x00\x01\x90\x00\x00\x00\x05" + message)


@settings(deadline=None)
@given(st.builds(ErrorReply, st.integers(-(1 << 31), (1 << 31) - 1), st.text()))
def test_every_error_reply_comes_back_as_it_was(reply: ErrorReply) -> None:
    assert ErrorReply.decode(reply.encode()) == reply


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_garbage_is_an_error_reply_or_an_invalid_payload(garbage: bytes) -> None:
    try:
        reply = ErrorReply.decode(garbage)
    except InvalidPayloadError:
        return
    assert reply.code == int.from_bytes(garbage[:4], signed=True)
