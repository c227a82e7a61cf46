"""Where connections come from, with real sockets: files of Unix sockets, vsock ports, and what accept gets over."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_agent import listeners
from arcbox_agent.addresses import CID_ANY, UnixAddress, VsockAddress
from arcbox_agent.listeners import Peer, SocketListener, listen, listen_patiently

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock


@pytest.fixture
def address(directory: Path) -> UnixAddress:
    return UnixAddress(str(directory / "agent.sock"))


def connected(address: UnixAddress) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(address.path)
    except OSError:
        client.close()
        raise
    return client


def mode_of(address: UnixAddress) -> int:
    return stat.S_IMODE(Path(address.path).stat().st_mode)


async def is_served(listener: SocketListener, address: UnixAddress) -> bool:
    """Whether who connects to the address gets to the listener."""
    with connected(address) as client, (await listener.accept())[0] as accepted:
        accepted.send(b"it is me")
        return client.recv(100) == b"it is me"


def logged(caplog: pytest.LogCaptureFixture, field: str) -> list[Any]:
    return [vars(record)[field] for record in caplog.records]


# The file of a Unix socket


async def test_a_unix_socket_listens_with_mode_0600_whatever_the_umask(address: UnixAddress) -> None:
    before = os.umask(0)
    try:
        with closing(listen(address)) as listener:
            assert mode_of(address) == 0o600
            assert await is_served(listener, address)
    finally:
        os.umask(before)


def test_the_file_is_never_there_with_another_mode(address: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    class Watched(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:  # the first call after bind
            modes.append(mode_of(address))
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(0)
    try:
        listen(address).close()
    finally:
        os.umask(before)
    assert modes == [0o600]


async def test_a_file_that_a_dead_listener_left_is_replaced(address: UnixAddress) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address.path)
        dead.listen()
    with closing(listen(address)) as listener:
        assert await is_served(listener, address)


async def test_the_file_of_a_live_listener_is_not_replaced(address: UnixAddress) -> None:
    with closing(listen(address)) as alive:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            listen(address)
        with (await alive.accept())[0]:
            pass  # the question whether it lives
        assert await is_served(alive, address)


def test_a_live_listener_that_is_too_busy_to_answer_is_not_replaced(address: UnixAddress) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(address.path)
        busy.listen(0)
        waiting = [connected(address)]
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
                listen(address)
            assert Path(address.path).is_socket()
        finally:
            waiting.pop().close()


def make_regular(path: Path) -> None:
    path.write_text("precious")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def make_link_to_a_dead_socket(path: Path) -> None:
    path.symlink_to(path.with_name("dead"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path.with_name("dead")))


@pytest.mark.parametrize(
    "make", [make_regular, Path.mkdir, make_fifo, make_link_to_nothing, make_link_to_a_dead_socket]
)
def test_what_is_no_socket_is_never_deleted(make: Callable[[Path], None], address: UnixAddress) -> None:
    path = Path(address.path)
    make(path)
    before = path.lstat()
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        listen(address)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_socket_of_another_kind_that_lives_is_not_deleted(address: UnixAddress) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(address.path)
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            listen(address)
        assert Path(address.path).is_socket()


@pytest.mark.parametrize("path", ["/nonexistent/agent.sock", "/" + 200 * "x"])
def test_a_path_that_can_not_be_bound_is_an_error(path: str) -> None:
    with pytest.raises(OSError, match=r"No such file|too long"):
        listen(UnixAddress(path))


def test_the_file_goes_away_with_its_listener(address: UnixAddress) -> None:
    listen(address).close()
    assert not os.path.lexists(address.path)


def test_closing_again_does_no_harm(address: UnixAddress) -> None:
    listener = listen(address)
    listener.close()
    with closing(listen(address)):
        listener.close()
        assert Path(address.path).is_socket()


async def test_the_file_of_a_successor_stays(address: UnixAddress) -> None:
    predecessor = listen(address)
    Path(address.path).unlink()  # noqa: ASYNC240  of /tmp
    with closing(listen(address)) as successor:
        predecessor.close()
        assert await is_served(successor, address)


def test_another_file_that_took_the_place_stays(address: UnixAddress) -> None:
    listener = listen(address)
    Path(address.path).unlink()
    make_regular(Path(address.path))
    listener.close()
    assert Path(address.path).read_text() == "precious"


def test_the_file_is_gone_before_the_socket_is(address: UnixAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a successor could find it stale, replace it, and lose its own, which may have the same inode."""
    there = []

    class Watched(socket.socket):
        def close(self) -> None:
            there.append(os.path.lexists(address.path))
            super().close()

    monkeypatch.setattr(socket, "socket", Watched)
    listen(address).close()
    assert there == [False]


# Patience


async def test_an_address_that_can_not_be_bound_is_tried_again_until_it_can(
    directory: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    address = UnixAddress(str(directory / "later" / "agent.sock"))

    async def make_directory() -> None:
        await trio.sleep(20)
        (directory / "later").mkdir()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_directory)
        with closing(await listen_patiently(address)) as listener:
            assert await is_served(listener, address)
    assert logged(caplog, "retry_in_seconds") == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert set(logged(caplog, "listener")) == {str(address)}
    assert "No such file" in logged(caplog, "error")[0]


async def test_patience_ends_when_it_is_cancelled(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen_patiently, UnixAddress("/nonexistent/agent.sock"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_an_address_whose_owner_ends_is_taken_over(address: UnixAddress, autojump_clock: MockClock) -> None:
    owner = listen(address)

    async def end_of_the_owner() -> None:
        await trio.sleep(1)
        owner.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_of_the_owner)
        with closing(await listen_patiently(address)) as listener:
            assert await is_served(listener, address)


# Accepting


async def test_connections_come_in_the_order_they_were_made(address: UnixAddress) -> None:
    with closing(listen(address)) as listener:
        clients = [connected(address) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(bytes([number]))
        for number, client in enumerate(clients):
            with client, (await listener.accept())[0] as accepted:
                assert accepted.recv(1) == bytes([number])


async def test_accept_waits_for_a_connection(address: UnixAddress) -> None:
    accepted: list[Peer] = []

    async def accept() -> None:
        connected, peer = await listener.accept()
        connected.close()
        accepted.append(peer)

    with closing(listen(address)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            assert not accepted
            connected(address).close()
    assert len(accepted) == 1


async def test_a_connection_is_not_inherited_by_children(address: UnixAddress) -> None:
    with closing(listen(address)) as listener, connected(address), (await listener.accept())[0] as accepted:
        assert not accepted.get_inheritable()


async def test_running_out_of_file_descriptors_is_waited_out(
    address: UnixAddress, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    accepted = trio.Event()

    async def accept() -> None:
        (await listener.accept())[0].close()
        accepted.set()

    with closing(listen(address)) as listener, connected(address):
        lowest_free = os.dup(0)
        os.close(lowest_free)
        async with trio.open_nursery() as nursery:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                nursery.start_soon(accept)
                await trio.sleep(10)
                assert not accepted.is_set()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await accepted.wait()
    assert "Too many open files" in logged(caplog, "error")[0]
    delays = logged(caplog, "retry_in_seconds")
    assert delays[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(delays[6:]) == {1.0}


async def test_after_a_connection_the_next_shortage_counts_as_the_first(
    address: UnixAddress, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = stumbling(address, [errno.EMFILE, errno.ENFILE, 0, errno.ENOMEM, errno.ENOBUFS])
    with closing(listener):
        for _ in range(2):
            assert await is_served(listener, address)
    assert logged(caplog, "retry_in_seconds") == [0.05, 0.1, 0.05, 0.1]


def stumbling(address: UnixAddress, errors: list[int]) -> SocketListener:
    """A listener on a real socket whose first accepts fail with these errnos; 0 is none."""

    class Stumbling(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            error = errors.pop(0) if errors else 0
            if error:
                raise OSError(error, os.strerror(error))
            return super().accept()

    listening = Stumbling(socket.AF_UNIX)
    listening.setblocking(False)
    listening.bind(address.path)
    listening.listen()
    return SocketListener(listening, address)


@pytest.mark.parametrize(
    "error", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETUNREACH], ids=errno.errorcode.__getitem__
)
async def test_a_connection_that_is_lost_before_it_is_accepted_costs_nothing_but_itself(
    error: int, address: UnixAddress, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(stumbling(address, [error, error])) as listener:
        assert await is_served(listener, address)
    assert not caplog.records


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, 999])
async def test_an_error_that_nobody_foresaw_is_logged_and_does_not_end_the_listener(
    error: int, address: UnixAddress, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(stumbling(address, [error, error])) as listener:
        assert await is_served(listener, address)
    assert logged(caplog, "retry_in_seconds") == [0.05, 0.1]


async def test_a_listener_that_can_never_accept_again_says_so(address: UnixAddress) -> None:
    with closing(stumbling(address, [errno.EINVAL])) as listener, pytest.raises(OSError, match="Invalid argument"):
        await listener.accept()


# AF_VSOCK


def free_vsock_port() -> int:
    """Some port that nobody listens on; skips where the kernel has no AF_VSOCK."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((CID_ANY, 0xFFFF_FFFF))
            port: int = probe.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no AF_VSOCK here: {error}")
    return port


def test_a_vsock_port_is_listened_on_and_let_go() -> None:
    address = VsockAddress(free_vsock_port())
    with closing(listen(address)) as listener:
        assert listener.address == address
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            listen(address)
    listen(address).close()


def test_a_vsock_listener_is_not_inherited_and_does_not_block() -> None:
    with closing(listen(VsockAddress(free_vsock_port()))) as listener:
        assert not listener._socket.get_inheritable()
        with pytest.raises(BlockingIOError):
            listener._socket.accept()


async def test_accepting_on_vsock_waits() -> None:
    with closing(listen(VsockAddress(free_vsock_port()))) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


def test_a_vsock_peer_is_described_by_its_cid_and_port() -> None:
    with socket.socket() as stand_in:  # what counts is that it is not AF_UNIX
        assert listeners._identify(stand_in, (2, 4711)) == Peer("vsock:2:4711", cid=2)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_failing_to_listen_leaves_no_descriptor_behind(address: UnixAddress) -> None:
    make_regular(Path(address.path))
    before = descriptors()
    for _ in range(10):
        with suppress(OSError):
            listen(address)
    assert descriptors() == before
