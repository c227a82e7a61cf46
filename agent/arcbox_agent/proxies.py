"""Raw relays: what connects to a port of the agent's speaks to the Docker or Kubernetes API, and sees no difference.

Not one byte is looked at. Each end may close its sending side and go on receiving (docker run -i, docker exec -i), so
the two directions of a connection end one by one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_agent.addresses import UnixAddress, VsockAddress, parse_address, parse_target
from arcbox_agent.guest_setup import docker_vsock_port
from arcbox_agent.listeners import guarded, listen_patiently

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from arcbox_agent.addresses import Address, TcpAddress
    from arcbox_agent.settings import Settings

log = logging.getLogger(__name__)

_SMALL: Final = 16 * 1024
"""Bytes of one receive. Whoever fills it has more, which goes through a pipe."""

_BULK: Final = 1024 * 1024
"""Bytes of the pipe, the most that anybody may ask for: pipe(7); and of the send buffers of Unix sockets."""

_COPIED: Final = 256 * 1024
"""Bytes of one receive from or for AF_VSOCK, where splice(2) works, and is slower than copying."""

_ROUNDS_BETWEEN_CHECKPOINTS: Final = 16

_CONNECT_WITHIN: Final = 10.0
"""Seconds to wait for room in the backlog of a target, or for the answer of a TCP one."""

_RETRY: Final = 0.01


KUBERNETES_VSOCK_PORT: Final = 16443


@frozen
class Target:
    """What is connected to."""

    family: socket.AddressFamily
    address: str | tuple[str, int]

    @classmethod
    def at(cls, address: UnixAddress | TcpAddress) -> Target:
        """The target at an address."""
        if isinstance(address, UnixAddress):
            return cls(socket.AF_UNIX, address.path)
        return cls(socket.AF_INET6 if ":" in address.ip else socket.AF_INET, (address.ip, address.port))

    async def connect(self) -> socket.socket:
        """A connected socket, which does not block.

        Raises:
            OSError: nobody accepts connections there.
            trio.TooSlowError: somebody does, but not now.
        """
        connecting = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            number = connecting.connect_ex(self.address)
            if number:
                with trio.fail_after(_CONNECT_WITHIN):
                    await self._finish(connecting, number)
        except BaseException:
            connecting.close()
            raise
        return connecting

    async def _finish(self, connecting: socket.socket, number: int) -> None:
        while number == errno.EAGAIN:  # a Unix socket whose backlog is full: there is nothing to wait for
            await trio.sleep(_RETRY)
            number = connecting.connect_ex(self.address)
        if number == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(connecting)
            number = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        await trio.lowlevel.checkpoint_if_cancelled()
        if number:
            raise OSError(number, os.strerror(number))


@define(eq=False)
class Proxy:
    """Listens, and relays each connection to a target of its own."""

    name: str
    """For the log."""

    _addresses: Sequence[Address]
    _target: Target
    _allowed_cids: Container[int]
    open: int = field(init=False, default=0)
    """Connections at the moment."""

    async def run(self) -> None:
        """Relay, for ever."""
        async with trio.open_nursery() as relays:
            for address in self._addresses:
                relays.start_soon(self._listen, address, relays)

    async def _listen(self, address: Address, relays: trio.Nursery) -> None:
        listener = guarded(await listen_patiently(address), self._allowed_cids)
        try:
            log.info("proxy listening", extra={"proxy": self.name, "listener": str(address)})
            while True:
                accepted, _peer = await listener.accept()
                relays.start_soon(self._relay, accepted, relays)
                await trio.lowlevel.checkpoint()
        finally:
            listener.close()

    async def _relay(self, near: socket.socket, relays: trio.Nursery) -> None:
        """From here to there; and, as a task of its own, the other way round. The last of both closes the sockets."""
        with ExitStack() as closing:
            closing.callback(near.close)
            near.setblocking(False)
            try:
                far = await self._target.connect()
            except (OSError, trio.TooSlowError) as error:
                log.info("proxy can't connect", extra={"proxy": self.name, "reason": str(error)})
                return
            closing.pop_all()
        connection = _Connection(near, far)
        self.open += 1
        relays.start_soon(self._run_direction, connection, far, near)
        await self._run_direction(connection, near, far)

    async def _run_direction(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        try:
            await _Direction(source, sink).run()
        except OSError:  # one end is gone: so is the connection, for both
            connection.abort()
        except Exception:
            log.exception("proxy failed", extra={"proxy": self.name})
            connection.abort()
        finally:
            if connection.leave():
                self.open -= 1


def build_proxies(settings: Settings) -> list[Proxy]:
    """The proxies that the settings want."""
    over_vsock = any(isinstance(parse_address(address), VsockAddress) for address in settings.listen)
    routes = (
        ("docker", settings.proxy.docker, docker_vsock_port(), f"unix:{settings.runtime.docker_socket}"),
        ("kubernetes", settings.proxy.kubernetes, KUBERNETES_VSOCK_PORT, ""),
    )
    proxies = []
    for name, route, port, default_target in routes:
        texts = [text for text in route.listen if text != "auto"]
        addresses = [parse_address(text) for text in texts]
        if "auto" in route.listen and over_vsock:
            addresses.append(VsockAddress(port))
        if addresses:
            target = Target.at(parse_target(route.target or default_target))
            proxies.append(Proxy(name, addresses, target, settings.vsock.allowed_cids))
    return proxies


@define(eq=False)
class _Connection:
    """The two sockets of a connection, closed when neither direction needs them any more."""

    near: socket.socket
    far: socket.socket
    _directions: int = field(init=False, default=2)

    def abort(self) -> None:
        """End both directions."""
        for end in (self.near, self.far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def leave(self) -> bool:
        """One direction has ended; whether it was the last."""
        self._directions -= 1
        if self._directions == 0:
            self.near.close()
            self.far.close()
        return self._directions == 0


@define(eq=False)
class _Direction:
    """From one socket to another, until the end of the stream."""

    _source: socket.socket
    _sink: socket.socket
    _rounds: int = field(init=False, default=0)

    async def run(self) -> None:
        """Relay until the source ends, and then end the sink. Raises OSError: one of them is gone."""
        size = _SMALL
        while data := await self._receive(size):
            await self._send(data)
            if len(data) < size:
                continue
            if socket.AF_VSOCK in (self._source.family, self._sink.family):
                size = _COPIED
            else:
                await self._splice_all()
                break
        self._sink.shutdown(socket.SHUT_WR)

    async def _receive(self, size: int) -> bytes:
        while True:
            try:
                data = self._source.recv(size)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._source)
            else:
                await self._take_turns()
                return data

    async def _send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            try:
                sent += self._sink.send(memoryview(data)[sent:] if sent else data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink)

    async def _splice_all(self) -> None:
        """Have the kernel move the rest: neither copied here nor allocated."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _BULK)
            if self._sink.family == socket.AF_UNIX:
                self._sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BULK)
            source, sink = self._source.fileno(), self._sink.fileno()
            while True:
                try:
                    inside = os.splice(source, writer, _BULK)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(source)
                    continue
                if not inside:
                    return
                while inside:
                    try:
                        inside -= os.splice(reader, sink, inside)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sink)
                await self._take_turns()
        finally:
            os.close(reader)
            os.close(writer)

    async def _take_turns(self) -> None:
        self._rounds += 1
        if self._rounds % _ROUNDS_BETWEEN_CHECKPOINTS == 0:
            await trio.lowlevel.checkpoint()
