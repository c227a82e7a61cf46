"""Sockets that systemd passed: sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_agent.addresses import CID_ANY, UnixAddress, VsockAddress
from arcbox_agent.passed_listeners import PassedListenerError, passed_listeners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    PassOn = Callable[..., dict[str, str]]

FIRST = 600
"""In place of 3, which pytest may use itself."""


@pytest.fixture
def pass_on() -> Iterator[PassOn]:
    """Put sockets where a service manager would, and make the environment that goes with them."""
    passed: list[int] = []

    def pass_on(*sockets: socket.socket | int, **environ: str) -> dict[str, str]:
        for number, source in enumerate(sockets, FIRST):
            os.dup2(source if isinstance(source, int) else source.fileno(), number, inheritable=True)
            passed.append(number)
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), **environ}

    yield pass_on
    for number in passed:
        with suppress(OSError):  # its new owner closed it
            os.close(number)


def unix_listener(directory: Path, name: str = "agent.sock", kind: int = socket.SOCK_STREAM) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(str(directory / name))
    if kind != socket.SOCK_DGRAM:
        listening.listen()
    return listening


def vsock_listener() -> socket.socket:
    try:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        pytest.skip(f"no AF_VSOCK here: {error}")
    listening.bind((CID_ANY, 0xFFFF_FFFF))
    listening.listen()
    return listening


# What is taken


async def test_a_passed_unix_socket_accepts(directory: Path, pass_on: PassOn) -> None:
    with unix_listener(directory) as original:
        environ = pass_on(original)
    (listener,) = passed_listeners(environ, first=FIRST)
    with closing(listener), socket.socket(socket.AF_UNIX) as client:
        assert listener.address == UnixAddress(str(directory / "agent.sock"))
        client.connect(str(directory / "agent.sock"))
        accepted, peer = await listener.accept()
        accepted.close()
        assert peer.uid == os.geteuid()


def test_a_passed_vsock_socket_has_its_address(pass_on: PassOn) -> None:
    with vsock_listener() as original:
        port = original.getsockname()[1]
        environ = pass_on(original)
    (listener,) = passed_listeners(environ, first=FIRST)
    with closing(listener):
        assert listener.address == VsockAddress(port)
        assert str(listener.address) == f"vsock:{port}"


def test_sockets_are_taken_in_the_order_they_were_passed(directory: Path, pass_on: PassOn) -> None:
    names = ["b.sock", "a.sock", "c.sock"]
    originals = [unix_listener(directory, name) for name in names]
    listeners = passed_listeners(pass_on(*originals), first=FIRST)
    assert [str(listener.address) for listener in listeners] == [f"unix:{directory}/{name}" for name in names]
    for original, listener in zip(originals, listeners, strict=True):
        original.close()
        listener.close()


def test_no_child_inherits_them_or_thinks_that_they_are_its_own(directory: Path, pass_on: PassOn) -> None:
    with unix_listener(directory) as original:
        environ = pass_on(original, LISTEN_FDNAMES="agent", PATH="/bin")
        assert os.get_inheritable(FIRST)
        (listener,) = passed_listeners(environ, first=FIRST)
    with closing(listener):
        assert not os.get_inheritable(FIRST)
        assert environ == {"PATH": "/bin"}


def test_a_passed_socket_s_file_belongs_to_who_passed_it(directory: Path, pass_on: PassOn) -> None:
    with unix_listener(directory) as original:
        (listener,) = passed_listeners(pass_on(original), first=FIRST)
        listener.close()
        assert (directory / "agent.sock").is_socket()


def test_an_abstract_socket_is_named_as_systemd_writes_it(pass_on: PassOn) -> None:
    name = f"arcbox-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as original:
        original.bind(f"\0{name}")
        original.listen()
        (listener,) = passed_listeners(pass_on(original), first=FIRST)
    with closing(listener):
        assert str(listener.address) == f"unix:@{name}"


# What is not meant for this process


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"},
        {"LISTEN_PID": "me", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "all"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": ""},
    ],
)
def test_what_was_passed_to_another_process_or_not_at_all_is_left_alone(
    environ: dict[str, str], directory: Path, pass_on: PassOn
) -> None:
    with unix_listener(directory) as original:
        pass_on(original)
        assert passed_listeners(environ, first=FIRST) == []
        assert os.get_inheritable(FIRST)
    assert environ == {}


# What can't be served on


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(PassedListenerError) as refused:
        passed_listeners(environ, first=FIRST)
    text = str(refused.value)
    assert f"passed descriptor {FIRST} " in text
    assert environ == {}
    return text


def test_a_file_is_refused(pass_on: PassOn) -> None:
    with Path("/dev/null").open() as file:
        assert "is no socket" in refusal(pass_on(file.fileno()))


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    text = refusal({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert "is no socket: Bad file descriptor" in text


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_that_is_no_stream_is_refused(kind: int, directory: Path, pass_on: PassOn) -> None:
    with unix_listener(directory, kind=kind) as original:
        assert "is no listening stream socket" in refusal(pass_on(original))


def test_a_socket_that_does_not_listen_is_refused(directory: Path, pass_on: PassOn) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(directory / "agent.sock"))
        assert "is no listening stream socket" in refusal(pass_on(bound))


def test_a_connection_is_refused(pass_on: PassOn) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert "is no listening stream socket" in refusal(pass_on(ours))


def test_a_tcp_socket_is_refused(pass_on: PassOn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert "is neither a vsock nor a named Unix socket" in refusal(pass_on(listening))


def test_a_refused_socket_is_closed(pass_on: PassOn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        refusal(pass_on(listening))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(FIRST)
