"""Who may connect: the agent's user and root over a Unix socket, the host over vsock."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field

from arcbox_agent.addresses import CID_ANY, Address, UnixAddress, VsockAddress
from arcbox_agent.listeners import Peer, guarded, listen

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")

CONNECT = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
if uid != os.getuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
client = socket.socket(socket.AF_UNIX)
client.connect(path)
print(client.recv(100).decode())
"""
"""A client that becomes another user, connects, and prints what it is told."""


@pytest.fixture
def directory(directory: Path) -> Path:
    """One that other users may look into."""
    directory.chmod(0o755)
    return directory


@pytest.fixture
def address(directory: Path) -> UnixAddress:
    return UnixAddress(str(directory / "agent.sock"))


def logged(caplog: pytest.LogCaptureFixture, field: str) -> list[Any]:
    return [vars(record)[field] for record in caplog.records]


def connect_as(uid: int, address: UnixAddress) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  our own script
        [sys.executable, "-I", "-c", CONNECT, address.path, str(uid)], stdout=subprocess.PIPE, text=True
    )


async def output(child: subprocess.Popen[str]) -> str:
    text, _ = await trio.to_thread.run_sync(child.communicate)
    return text.strip()


async def test_a_peer_is_described_by_its_process_and_user(address: UnixAddress) -> None:
    with closing(listen(address)) as listener, connect_as(os.geteuid(), address) as child:
        accepted, peer = await listener.accept()
        accepted.close()
    assert peer == Peer(f"unix:pid={child.pid},uid={os.geteuid()}", uid=os.geteuid())


async def test_a_process_of_the_agent_s_user_is_served(address: UnixAddress) -> None:
    with closing(guarded(listen(address), ())) as listener, connect_as(os.geteuid(), address) as child:
        with (await listener.accept())[0] as accepted:
            accepted.send(b"welcome")
        assert await output(child) == "welcome"


@root_only
async def test_a_process_of_another_user_is_turned_away_even_if_the_file_s_mode_lets_it_in(
    address: UnixAddress, caplog: pytest.LogCaptureFixture
) -> None:
    accepted: list[Peer] = []

    async def accept() -> None:
        connected, peer = await listener.accept()
        connected.close()
        accepted.append(peer)

    with closing(guarded(listen(address), ())) as listener:
        os.chmod(address.path, 0o666)  # noqa: PTH101, S103  so that only the credentials are in the way
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            with connect_as(NOBODY, address) as child:
                assert await output(child) == ""
            assert not accepted
            assert logged(caplog, "peer") == [f"unix:pid={child.pid},uid={NOBODY}"]
            with connect_as(0, address) as of_root:
                await output(of_root)
    assert accepted == [Peer(f"unix:pid={of_root.pid},uid=0", uid=0)]


@root_only
async def test_the_file_s_mode_keeps_other_users_out(address: UnixAddress) -> None:
    with closing(listen(address)):
        script = CONNECT.replace("client.connect", "raise SystemExit(client.connect_ex(path)) #")
        command = [sys.executable, "-I", "-c", script, address.path, str(NOBODY)]
        assert (await trio.run_process(command, check=False)).returncode == errno.EACCES


@root_only
async def test_an_agent_that_is_not_root_serves_its_user_and_root(
    address: UnixAddress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    with closing(guarded(listen(address), ())) as listener:
        os.chmod(address.path, 0o666)  # noqa: PTH101, S103  so that only the credentials are in the way
        for uid in (NOBODY, 0):
            with connect_as(uid, address):
                accepted, peer = await listener.accept()
                accepted.close()
                assert peer.uid == uid
        with connect_as(1, address) as child, trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.accept)
                assert await output(child) == ""
                scope.cancel()
    assert logged(caplog, "peer") == [f"unix:pid={child.pid},uid=1"]


@define
class StandIn:
    """In place of an AF_VSOCK listener, which no peer can reach on a machine without a hypervisor or loopback."""

    peers: deque[Peer]
    address: Address = field(init=False, factory=lambda: VsockAddress(1024))
    ends: list[socket.socket] = field(init=False, factory=list)

    async def accept(self) -> tuple[socket.socket, Peer]:
        await trio.lowlevel.checkpoint()
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return ours, self.peers.popleft()

    def close(self) -> None:
        for end in self.ends:
            end.close()


def of_cid(cid: int) -> Peer:
    return Peer(f"vsock:{cid}:4711", cid=cid)


def standing_in(*cids: int) -> StandIn:
    return StandIn(deque(map(of_cid, cids)))


@pytest.mark.parametrize("refused", [1, 3, 0, CID_ANY])
async def test_only_allowed_cids_are_served(refused: int, caplog: pytest.LogCaptureFixture) -> None:
    stand_in = standing_in(refused, 2)
    with closing(guarded(stand_in, (2,))) as listener:
        accepted, peer = await listener.accept()
        with accepted:
            assert peer == of_cid(2)
            turned_away, served = stand_in.ends
            assert turned_away.recv(1) == b""
            served.setblocking(False)
            with pytest.raises(BlockingIOError):
                served.recv(1)
    assert logged(caplog, "peer") == [f"vsock:{refused}:4711"]


async def test_a_flood_of_refused_peers_leaves_the_others_their_turn() -> None:
    stand_in = standing_in(*[1] * 100, 2)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with closing(guarded(stand_in, (2,))) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            (await listener.accept())[0].close()
            nursery.cancel_scope.cancel()
    assert turns >= 100


def test_a_filter_listens_where_its_listener_does(address: UnixAddress) -> None:
    assert guarded(standing_in(), (2,)).address == VsockAddress(1024)
    with closing(guarded(listen(address), (2,))) as listener:
        assert listener.address == address
