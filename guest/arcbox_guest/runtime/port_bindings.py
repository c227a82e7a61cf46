"""Which ports of the guest lead to containers, as Docker's events tell it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import trio
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

_EVENTS: Final = "/events?filters=" + quote('{"type":["container"],"event":["start","die"]}')
_RETRY: Final = 1.0
"""Seconds before the next try to hear Docker's events, while there is no Docker."""

_LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes of a reply, or of one event; Docker's own are some KiB."""


@frozen
class PortBinding:
    """A port of a container, and the port of the guest that leads to it."""

    container_port: int
    host_port: int
    protocol: str
    host_ip: str


Bindings = tuple[PortBinding, ...]


@define(eq=False)
class PortBindingWatch:
    """Tells one listener of the bindings of each container: all at first, and then what changes."""

    _docker_socket: str
    _tell: Callable[[str, Bindings], Awaitable[None]]
    """Called with a container's id and its bindings; without any when it has none any more."""

    _known: dict[str, Bindings] = field(init=False, factory=dict)

    async def run(self) -> None:
        """Watch, for ever. While there is no Docker, what was known stays."""
        while True:
            try:
                await self._follow()
            except (OSError, ValueError, KeyError, trio.BrokenResourceError) as error:
                log.debug("docker's events can't be heard", extra={"reason": repr(error)})
            await trio.sleep(_RETRY)

    async def _follow(self) -> None:
        """Hear events until Docker ends. The containers are listed after it has begun, so that none is missed."""
        async with await self._request(_EVENTS) as stream:
            events = _Lines(stream)
            await events.skip_header()
            running = {container["Id"] for container in await self._get("/containers/json")}
            for gone in self._known.keys() - running:
                await self._note(gone, ())
            for container_id in running:
                await self._note(container_id, await self._bindings(container_id))
            while line := await events.next():
                event = json.loads(line)
                container_id = event["Actor"]["ID"]
                started = event["Action"] == "start"
                await self._note(container_id, await self._bindings(container_id) if started else ())

    async def _note(self, container_id: str, bindings: Bindings) -> None:
        if bindings == self._known.get(container_id, ()):
            return
        if bindings:
            self._known[container_id] = bindings
        else:
            del self._known[container_id]
        await self._tell(container_id, bindings)

    async def _bindings(self, container_id: str) -> Bindings:
        """The events carry no ports: they are asked for; none of a container that is gone by now."""
        container = await self._get(f"/containers/{container_id}/json")
        ports = container.get("NetworkSettings", {}).get("Ports") or {}
        return tuple(
            PortBinding(int(port.partition("/")[0]), int(host["HostPort"]), port.partition("/")[2], host["HostIp"])
            for port, hosts in sorted(ports.items())
            for host in hosts or ()
        )

    async def _get(self, path: str) -> Any:  # noqa: ANN401  JSON
        async with await self._request(path) as stream:
            lines = _Lines(stream)
            await lines.skip_header()
            body = b""
            while line := await lines.next():
                body += line
            return json.loads(body)

    async def _request(self, path: str) -> trio.SocketStream:
        """Begin a request of HTTP/1.0, whose reply ends with the connection and has no chunks: RFC 1945."""
        connected = trio.socket.socket(trio.socket.AF_UNIX)
        try:
            await connected.connect(self._docker_socket)
            stream = trio.SocketStream(connected)
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        except BaseException:
            connected.close()
            raise
        return stream


@define(eq=False)
class _Lines:
    """A reply of HTTP/1.0, line by line, each with its end."""

    _stream: trio.SocketStream
    _buffer: bytes = field(init=False, default=b"")

    async def next(self) -> bytes:
        """The next line; empty at the end of the reply."""
        while b"\n" not in self._buffer:
            received = await self._stream.receive_some()
            if not received:
                last, self._buffer = self._buffer, b""
                return last
            self._buffer += received
            if len(self._buffer) > _LONGEST_LINE:
                raise ValueError("a line without an end")
        line, end, self._buffer = self._buffer.partition(b"\n")
        return line + end

    async def skip_header(self) -> None:
        """Go to the first line of the body."""
        while (await self.next()).strip():
            pass
