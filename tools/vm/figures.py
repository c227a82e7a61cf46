"""`python -m tools.vm figures`: how fast the agent is in a guest. Times are of an emulated processor: ratios mean more.

The figures that the agent is compared with come from the same guest: qemu-ga over virtio-serial, a program of a few
lines over the agent's own way, AF_VSOCK, as the floor, and a start by hand.
"""

from __future__ import annotations

import base64
import json
import statistics
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import evolve, frozen

from arcbox_client import connect
from arcbox_client.errors import ConnectError, ConnectionLostError
from tools.vm.image import image
from tools.vm.qemu import Machine, Vm, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from arcbox_client import AgentClient

_PATIENCE: Final = 600.0
_PINGS: Final = 100
_READS: Final = 10
_RESTARTS: Final = 5
_FILE: Final = "/run/figures"
_FILE_SIZE: Final = 4 * 1024 * 1024
_FLOOR_PORT: Final = 1022
_FLOOR: Final = f"""
import socket
listening = socket.socket(socket.AF_VSOCK)
listening.bind((socket.VMADDR_CID_ANY, {_FLOOR_PORT}))
listening.listen()
peer, _ = listening.accept()
while asked := peer.recv(1):
    peer.sendall(asked if asked == b"p" else open("{_FILE}", "rb").read())
"""
"""Answers a `p` with itself, anything else with the file."""

_NO_SOCKET: Final = {"etc/systemd/system/arcbox-agent.socket": "/dev/null"}
"""Masks the unit: the agent then listens by itself."""

_GUEST_AGENT: Final = "qemu-guest-agent"
"""The package."""


async def print_figures(directory: Path) -> None:
    """Boot a few guests, one after the other, and print what was measured in them."""
    base = Machine(image=image(), directory=directory)
    await _print_start("unit", evolve(base, directory=_made(directory / "unit"), inject=_NO_SOCKET))
    await _print_start("unit with its socket", evolve(base, directory=_made(directory / "socket")))
    await _print_start("PID 1", evolve(base, directory=_made(directory / "pid1"), init="/usr/bin/arcbox-agent"))
    async with _with_qemu_ga(_made(directory / "qemu-ga")) as (vm, qemu_ga):
        async with connect(vm.address, timeout=_PATIENCE) as agent, await _floor(vm) as stream:
            await _print_requests(agent, qemu_ga, _Floor(stream))
        await _print_restarts(vm)


async def _print_start(name: str, machine: Machine) -> None:
    begun = trio.current_time()
    async with running(machine) as vm:
        await _pong(vm)
        print(f"{name}: first pong {trio.current_time() - begun:.1f} s after QEMU was started")
        if machine.init == "/sbin/init":
            properties = ("-p", "ExecMainStartTimestampMonotonic", "-p", "ActiveEnterTimestampMonotonic")
            shown = await vm.output("systemctl", "show", "--value", *properties, "arcbox-agent.service")
            started, ready = sorted(int(line) / 1e6 for line in shown.split())
            print(f"  by the guest's clock: ExecStart at {started:.1f} s, READY=1 at {ready:.1f} s")


async def _print_requests(agent: AgentClient, qemu_ga: _QemuGa, floor: _Floor) -> None:
    async def ping() -> None:
        await agent.ping()

    async def read() -> None:
        assert len(await agent.mmap_read_file(_FILE)) == _FILE_SIZE

    for what, rounds, calls in (
        ("ping", _PINGS, (ping, floor.ping, qemu_ga.ping)),
        (f"{_FILE_SIZE // 2**20} MiB of a file", _READS, (read, floor.read, qemu_ga.read)),
    ):
        taken = [[await _seconds(call) for call in calls] for _ in range(rounds)]
        ours, least, theirs = (statistics.median(column) * 1e3 for column in zip(*taken, strict=True))
        print(
            f"{what}: {ours:.2f} ms; the floor {least:.2f} ms, {least / ours:.2f} times that; "
            f"qemu-ga {theirs:.2f} ms, {theirs / ours:.2f} times"
        )


async def _print_restarts(vm: Vm) -> None:
    unit = "arcbox-agent.service"

    async def start() -> None:
        await vm.output("systemctl", "start", unit)
        await _pong(vm)

    async def kill() -> None:
        await vm.output("systemctl", "kill", "--signal", "KILL", unit)
        await _pong(vm)

    taken = list[tuple[float, float]]()
    for _ in range(_RESTARTS):
        await vm.output("systemctl", "stop", unit)
        taken.append((await _seconds(start), await _seconds(kill)))
    by_hand, killed = (statistics.median(column) for column in zip(*taken, strict=True))
    print(f"start by hand: {by_hand:.1f} s to a pong; after kill -9: {killed:.1f} s, {killed / by_hand:.2f} times that")


async def _floor(vm: Vm) -> trio.SocketStream:
    """A connection to the floor's program, which is started."""
    await vm.output("sh", "-c", 'setsid python3 -IS -c "$1" >/dev/null 2>&1 &', "sh", _FLOOR)
    with trio.fail_after(_PATIENCE):
        while True:
            try:
                return await vm.connect(_FLOOR_PORT)
            except ConnectionRefusedError:
                await trio.sleep(0.1)  # it does not listen yet: nothing tells when it does


@frozen
class _Floor:
    """A client of the floor's program."""

    _stream: trio.SocketStream

    async def ping(self) -> None:
        await self._ask(b"p", 1)

    async def read(self) -> None:
        await self._ask(b"r", _FILE_SIZE)

    async def _ask(self, question: bytes, size: int) -> None:
        await self._stream.send_all(question)
        while size:
            size -= len(await self._stream.receive_some(1 << 16))


@asynccontextmanager
async def _with_qemu_ga(directory: Path) -> AsyncIterator[tuple[Vm, _QemuGa]]:
    path = directory / "qemu-ga"
    arguments = [
        *("-chardev", f"socket,id=ga,path={path},server=on,wait=off", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
    ]
    machine = Machine(image=image(_GUEST_AGENT), directory=directory, arguments=arguments)
    async with running(machine) as vm:
        await _pong(vm)
        await vm.output("sh", "-ec", f"modprobe virtio_console; head -c {_FILE_SIZE} /dev/urandom >{_FILE}")
        # There is no udev here to call it /dev/virtio-ports/org.qemu.guest_agent.0.
        await vm.output("sh", "-ec", "until port=$(ls /dev/vport*p1); do sleep 0.1; done; qemu-ga -d -p $port")
        async with await trio.open_unix_socket(path) as stream:
            yield vm, _QemuGa(stream)


@frozen
class _QemuGa:
    """A client of QEMU's own guest agent."""

    _stream: trio.SocketStream

    async def ping(self) -> None:
        await self._ask("guest-ping")

    async def read(self) -> None:
        """Read the file, as its documentation says how."""
        handle = await self._ask("guest-file-open", path=_FILE)
        answer = await self._ask("guest-file-read", handle=handle, count=_FILE_SIZE)
        assert len(base64.b64decode(answer["buf-b64"])) == _FILE_SIZE
        await self._ask("guest-file-close", handle=handle)

    async def _ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  JSON
        await self._stream.send_all(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        pieces = list[bytes]()
        while not (pieces and pieces[-1].endswith(b"\n")):
            pieces.append(await self._stream.receive_some(1 << 16))
        return json.loads(b"".join(pieces))["return"]


async def _seconds(call: Callable[[], Awaitable[None]]) -> float:
    begun = trio.current_time()
    await call()
    return trio.current_time() - begun


async def _pong(vm: Vm) -> None:
    """Wait until the agent answers a ping."""
    with trio.fail_after(_PATIENCE):
        while True:
            try:
                async with connect(vm.address, timeout=_PATIENCE) as agent:
                    await agent.ping()
                    return
            except (ConnectError, ConnectionLostError):
                await trio.sleep(0.02)  # nobody listens yet: nothing tells when somebody does


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
