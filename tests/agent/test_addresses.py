"""Addresses to listen on, as people write them."""

from __future__ import annotations

import pytest

from arcbox_agent.addresses import CID_ANY, Address, UnixAddress, VsockAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock:1024", VsockAddress(port=1024, cid=CID_ANY)),
        ("vsock:0", VsockAddress(port=0)),
        ("vsock:4294967294", VsockAddress(port=4294967294)),
        ("vsock:3:1024", VsockAddress(port=1024, cid=3)),
        ("vsock:1:1", VsockAddress(port=1, cid=1)),
        ("unix:/run/arcbox.sock", UnixAddress("/run/arcbox.sock")),
        ("unix:relative/to/where/we/are", UnixAddress("relative/to/where/we/are")),
        ("unix:/with:colons/and spaces", UnixAddress("/with:colons/and spaces")),
        ("unix:/söckel", UnixAddress("/söckel")),
    ],
)
def test_an_address_is_read_and_written_in_the_same_form(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1024",
        ":1024",
        "vsock",
        "vsock:",
        "vsock::1024",
        "vsock:3:",
        "vsock:1:2:3",
        "vsock:-1",
        "vsock:+1",
        "vsock: 1",
        "vsock:1024 ",
        "vsock:1_000",
        "vsock:0x400",
        "vsock:١٠٢٤",
        "vsock:4294967295",
        "vsock:4294967295:1024",
        "vsock:port",
        "VSOCK:1024",
        "unix",
        "unix:",
        "unix:/nul\0byte",
        "tcp:127.0.0.1:80",
        "/run/arcbox.sock",
    ],
)
def test_anything_else_is_refused_and_told_which_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"use vsock:PORT, vsock:CID:PORT or unix:PATH") as refusal:
        parse_address(text)
    assert repr(text) in str(refusal.value)


def test_a_number_too_long_for_python_is_refused_like_any_other() -> None:
    with pytest.raises(ValueError, match="is not an address to listen on"):
        parse_address("vsock:" + "9" * 5000)
