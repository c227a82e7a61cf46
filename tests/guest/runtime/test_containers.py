"""What is known of containers while Docker comes, goes and says strange things. The real one: tests/runtime."""

from __future__ import annotations

import json
import tempfile
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field

from arcbox_guest.runtime.containers import Bindings, ContainerWatch, PortBinding
from arcbox_guest.runtime.docker_api import DockerApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def described(name: str, address: str, *, port: str = "", running: bool = True, **labels: str) -> dict[str, Any]:
    """As `GET /containers/ID/json` has it, as far as it is read."""
    ports = {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}] if port else None}  # noqa: S104  of a stand-in
    networks = {"bridge": {"IPAddress": address}}
    return {
        "Name": f"/{name}",
        "State": {"Running": running},
        "Config": {"Labels": {f"com.docker.compose.{key}": value for key, value in labels.items()} or None},
        "NetworkSettings": {"Networks": networks, "Ports": ports},
    }


@define(eq=False)
class FakeDocker:
    """Answers on a socket in HTTP/1.0, while `run` runs. Its events are what the test says."""

    socket: Path
    containers: dict[str, dict[str, Any]] = field(factory=dict)
    heard: trio.Event = field(init=False, factory=trio.Event)
    """Set once somebody has asked for events."""

    _listeners: list[trio.SocketStream] = field(init=False, factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._listeners.clear()
        self.socket.unlink(missing_ok=True)
        with trio.socket.socket(trio.socket.AF_UNIX) as listening:
            await listening.bind(str(self.socket))
            listening.listen()
            listener = trio.SocketListener(listening)
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        path = (await stream.receive_some()).split()[1].decode()
        if path.startswith("/events"):
            await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n")
            self._listeners.append(stream)
            self.heard.set()
            await trio.sleep_forever()
        if path == "/containers/json":
            found: Any = [{"Id": each} for each, about in self.containers.items() if about["State"]["Running"]]
        else:
            found = self.containers.get(path.split("/")[2])
        status = "404 Not Found" if found is None else "200 OK"
        await stream.send_all(f"HTTP/1.0 {status}\r\nServer: x\r\n\r\n{json.dumps(found)}".encode())
        await stream.aclose()

    async def tell(self, kind: str, action: str, container: str) -> None:
        actor = {"ID": container} if kind == "container" else {"ID": "net", "Attributes": {"container": container}}
        for listener in self._listeners:
            await listener.send_all(json.dumps({"Type": kind, "Action": action, "Actor": actor}).encode() + b"\n")


@pytest.fixture
def docker() -> Iterator[FakeDocker]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        yield FakeDocker(Path(directory) / "docker.sock")


@define(eq=False)
class Watched:
    watch: ContainerWatch
    told: trio.MemoryReceiveChannel[tuple[str, Bindings]]


@pytest.fixture
async def watched(docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr("arcbox_guest.runtime.containers._RETRY", 0.01)
    watch = ContainerWatch(DockerApi(str(docker.socket)))
    sender, receiver = trio.open_memory_channel[tuple[str, Bindings]](10)

    async def tell(container_id: str, bindings: Bindings) -> None:
        await sender.send((container_id, bindings))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        nursery.start_soon(watch.tell_bindings, tell)
        yield Watched(watch, receiver)
        nursery.cancel_scope.cancel()


WEB = (PortBinding(80, 8080, "tcp", "0.0.0.0"),)  # noqa: S104  of a stand-in


async def test_what_is_known_stays_while_docker_is_away_and_is_made_up_for_when_it_returns(
    docker: FakeDocker, watched: Watched
) -> None:
    docker.containers = {
        "a": described("Web", "172.17.0.2", port="8080"),
        "b": described("old", "172.17.0.3", port="8081"),
        "c": described("no-port", "172.17.0.4"),
    }
    async with trio.open_nursery() as nursery:
        await nursery.start(docker.run)
        assert {(await watched.told.receive())[0] for _ in "ab"} == {"a", "b"}
        while not watched.watch.addresses_of("no-port"):  # noqa: ASYNC110  of it, without bindings, nobody is told
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert watched.watch.addresses_of("web") == [IPv4Address("172.17.0.2")]
    assert watched.watch.addresses_of("no-port") == [IPv4Address("172.17.0.4")]

    del docker.containers["b"]
    docker.containers["d"] = described("new", "172.17.0.3", port="8082")
    async with trio.open_nursery() as nursery:
        await nursery.start(docker.run)
        told = dict([await watched.told.receive() for _ in "bd"])
        assert told["b"] == ()
        assert told["d"][0].host_port == 8082
        assert watched.watch.addresses_of("old") == []
        assert watched.watch.addresses_of("web") == [IPv4Address("172.17.0.2")]
        nursery.cancel_scope.cancel()


async def test_containers_are_known_as_their_events_come(docker: FakeDocker, watched: Watched) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(docker.run)
        docker.containers["a"] = described("first", "172.17.0.2", port="8080")
        docker.containers["a"] |= {"State": {"Running": True}}
        await docker.heard.wait()
        await docker.tell("container", "start", "a")
        assert await watched.told.receive() == ("a", WEB)

        docker.containers["a"]["Name"] = "/second"
        await docker.tell("container", "rename", "a")
        await docker.tell("container", "start", "gone-by-now")
        docker.containers["b"] = described("stopped", "", port="8081", running=False)
        await docker.tell("network", "connect", "b")
        docker.containers["c"] = described("s-1", "172.18.0.2", port="8082", service="db", project="Shop")
        await docker.tell("network", "connect", "c")
        assert (await watched.told.receive())[0] == "c"  # and of the others before it there is nothing to tell
        assert watched.watch.addresses_of("first") == []
        assert watched.watch.addresses_of("second") == [IPv4Address("172.17.0.2")]
        assert watched.watch.addresses_of("db.shop") == watched.watch.addresses_of("s-1") == [IPv4Address("172.18.0.2")]

        await docker.tell("container", "die", "a")
        assert await watched.told.receive() == ("a", ())
        nursery.cancel_scope.cancel()


async def test_a_container_of_compose_run_has_no_service_s_name(docker: FakeDocker, watched: Watched) -> None:
    docker.containers["a"] = described("x", "172.17.0.2", port="8080", service="db", project="shop", oneoff="True")
    async with trio.open_nursery() as nursery:
        await nursery.start(docker.run)
        assert await watched.told.receive() == ("a", WEB)
        assert watched.watch.addresses_of("db.shop") == []
        assert watched.watch.addresses_of("x") == [IPv4Address("172.17.0.2")]
        nursery.cancel_scope.cancel()
