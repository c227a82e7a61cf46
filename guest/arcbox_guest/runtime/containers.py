"""The containers that run, as Docker's events tell of them: names, addresses, published ports."""

from __future__ import annotations

import json
import logging
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import trio
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from arcbox_guest.runtime.docker_api import DockerApi

log = logging.getLogger(__name__)

_FILTERS: Final = {
    "type": ["container", "network"],
    "event": ["start", "die", "rename", "connect", "disconnect"],
}
_EVENTS: Final = f"/events?filters={quote(json.dumps(_FILTERS))}"

_RETRY: Final = 1.0
"""Seconds before the next try to hear Docker's events, while there is no Docker."""

_PROJECT: Final = "com.docker.compose.project"
_SERVICE: Final = "com.docker.compose.service"
_ONE_OFF: Final = "com.docker.compose.oneoff"
"""Labels that `docker compose` gives its containers; the last is "True" for those of `docker compose run`."""


@frozen
class PortBinding:
    """A port of a container, and the port of the guest that leads to it."""

    container_port: int
    host_port: int
    protocol: str
    host_ip: str


Bindings = tuple[PortBinding, ...]


@frozen
class Container:
    """What a container is known by while it runs."""

    names: frozenset[str]
    """Its own, and SERVICE.PROJECT for one of a compose project; in lower case, as names in DNS are."""

    addresses: tuple[IPv4Address, ...]
    """One for each network that it is in."""

    bindings: Bindings

    @classmethod
    def parse(cls, described: dict[str, Any]) -> Container:
        """What `GET /containers/ID/json` tells.

        Raises:
            KeyError, ValueError: it is not as Docker's API has it.
        """
        names = {described["Name"].removeprefix("/").lower()}
        labels = described["Config"].get("Labels") or {}
        if labels.get(_SERVICE) and labels.get(_PROJECT) and labels.get(_ONE_OFF) != "True":
            names.add(f"{labels[_SERVICE]}.{labels[_PROJECT]}".lower())
        settings = described["NetworkSettings"]
        networks = (settings.get("Networks") or {}).values()
        return cls(
            names=frozenset(names),
            addresses=tuple(IPv4Address(network["IPAddress"]) for network in networks if network.get("IPAddress")),
            bindings=_bindings(settings.get("Ports") or {}),
        )


def _bindings(ports: dict[str, list[dict[str, str]] | None]) -> Bindings:
    return tuple(
        PortBinding(int(port.partition("/")[0]), int(host["HostPort"]), port.partition("/")[2], host["HostIp"])
        for port, hosts in sorted(ports.items())
        for host in hosts or ()
    )


@define(eq=False)
class ContainerWatch:
    """Knows the containers that run, from the first time that somebody wants to know on."""

    _docker: DockerApi
    _running: dict[str, Container] = field(init=False, factory=dict)
    """By id. While there is no Docker, what was known stays."""

    _wanted: trio.Event = field(init=False, factory=trio.Event)
    _changed: trio.Event = field(init=False, factory=trio.Event)

    async def run(self) -> None:
        """Watch, for ever."""
        await self._wanted.wait()
        while True:
            try:
                await self._follow()
            except (OSError, ValueError, KeyError, trio.BrokenResourceError) as error:
                log.debug("docker's events can't be heard", extra={"reason": repr(error)})
            await trio.sleep(_RETRY)

    def want(self) -> None:
        """Have it watch."""
        self._wanted.set()

    def addresses_of(self, name: str) -> Sequence[IPv4Address]:
        """The addresses of a container, or of all of a compose service; `name` as in `Container.names`."""
        named = [container for container in self._running.values() if name in container.names]
        return [address for container in named for address in container.addresses]

    async def tell_bindings(self, tell: Callable[[str, Bindings], Awaitable[None]]) -> None:
        """Tell somebody the bindings of each container: all at first, and then what changes. For ever.

        What changes and changes back while `tell` waits is not told.

        Args:
            tell: gets a container's id and its bindings; none when it has none any more.
        """
        self.want()
        told: dict[str, Bindings] = {}
        while True:
            changed = self._changed
            bound = {name: container.bindings for name, container in self._running.items() if container.bindings}
            for container_id in told.keys() | bound.keys():
                bindings = bound.get(container_id, ())
                if bindings != told.get(container_id, ()):
                    await tell(container_id, bindings)
            told = bound
            await changed.wait()

    async def _follow(self) -> None:
        """Hear events until Docker ends. The containers are listed after it has begun, so that none is missed."""
        async with self._docker.open(_EVENTS) as events:
            running = {container["Id"] for container in await self._docker.get("/containers/json")}
            for gone in self._running.keys() - running:
                self._note(gone, None)
            for container_id in running:
                self._note(container_id, await self._inspect(container_id))
            while line := await events.next_line():
                event = json.loads(line)
                actor = event["Actor"]
                container_id = actor["ID"] if event["Type"] == "container" else actor["Attributes"]["container"]
                ended = event["Action"] == "die"
                self._note(container_id, None if ended else await self._inspect(container_id))

    def _note(self, container_id: str, container: Container | None) -> None:
        if self._running.get(container_id) == container:
            return
        if container is None:
            del self._running[container_id]
        else:
            self._running[container_id] = container
        self._changed.set()
        self._changed = trio.Event()

    async def _inspect(self, container_id: str) -> Container | None:
        """Events carry neither ports nor addresses: they are asked for. None of a container that does not run."""
        described = await self._docker.get(f"/containers/{quote(container_id)}/json")
        return Container.parse(described) if described and described["State"]["Running"] else None
