"""The forms of an agent's address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcbox_client import UnixAddress, VsockAddress, parse_address
from arcbox_client.errors import InvalidAddressError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock:3:1024", VsockAddress(3, 1024)),
        ("vsock:4294967294:0", VsockAddress(4294967294, 0)),
        ("unix:/run/agent.sock", UnixAddress("/run/agent.sock")),
        ("unix:agent.sock", UnixAddress("agent.sock")),
        ("unix:/with:colons?and=more", UnixAddress("/with:colons?and=more")),
        ("unix:/run/vm.sock?port=1024", UnixAddress("/run/vm.sock", 1024)),
        ("unix:/a?port=1?port=2", UnixAddress("/a?port=1", 2)),
    ],
)
def test_an_address_reads_and_writes_as_people_write_it(text: str, address: UnixAddress | VsockAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/agent.sock",
        "unix:",
        "unix:/with\0zero",
        "unix:?port=1024",
        "unix:/x?port=",
        "unix:/x?port=-1",
        "unix:/x?port=many",
        "unix:/x?port=4294967295",
        "vsock:1024",
        "vsock:3:",
        "vsock::1024",
        "vsock:3:4:5",
        "vsock:-3:1024",
        "vsock:4294967295:1024",
        "vsock:3:\N{ARABIC-INDIC DIGIT ONE}",
        "tcp:localhost:1024",
    ],
)
def test_what_is_no_address_is_refused_with_the_forms_that_exist(text: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert "use vsock:CID:PORT, unix:PATH or unix:PATH?port=N" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@given(st.text())
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    for candidate in (text, f"unix:{text}", f"vsock:{text}"):
        try:
            address = parse_address(candidate)
        except InvalidAddressError:
            continue
        assert parse_address(str(address)) == address
