"""Agents with a real manager of sandboxes, whose driver has processes that do what a test says."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio
from attrs import Factory, define, field

from arcbox_agent.connection import Connection
from arcbox_agent.settings import Limits
from arcbox_agent.testing import MemoryPeer, memory_connection
from arcbox_agent.transport import SocketTransport
from arcbox_guest.sandboxes._fake_programs import Program
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import Action, Sandbox, Spec
from arcbox_guest.sandboxes.testing import ROOTFS, FakeDriver, FakeProcess, FakeRecords
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Context, default_registry
from arcbox_protocol import ErrorReply, Frame, FrameDecoder, MessageType, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from arcbox_guest import Guest
    from arcbox_guest.sandboxes.model import TerminalSize

ReplyT = TypeVar("ReplyT", bound="Message")

SCRIPTED = "scripted"
"""The program whose processes a test decides over."""


@define(eq=False)
class Scripted(Program):
    """Does nothing by itself, and remembers what it is told."""

    reads: bool = True
    stdin_is_closed: bool = False
    typed: list[bytes] = Factory(list)
    """Its stdin; the end is an empty piece."""

    sizes: list[TerminalSize] = Factory(list)
    _processes: list[FakeProcess] = Factory(list)
    _started: trio.lowlevel.ParkingLot = Factory(trio.lowlevel.ParkingLot)

    def started(self, process: FakeProcess) -> None:
        process._stdin_open = not self.stdin_is_closed
        self._processes.append(process)
        self._started.unpark_all()

    def stdin(self, process: FakeProcess, data: bytes) -> None:
        self.typed.append(data)

    def resized(self, process: FakeProcess, size: TerminalSize) -> None:
        self.sizes.append(size)

    async def process(self) -> FakeProcess:
        """The latest that was started, each once."""
        while not self._processes:
            await self._started.park()
        return self._processes.pop()


@define(eq=False)
class Sandboxes:
    """A manager that runs, and what is behind it."""

    manager: SandboxManager
    driver: FakeDriver
    records: FakeRecords
    events: EventHub
    guest: Guest

    @classmethod
    def of(cls, driver: FakeDriver, records: FakeRecords) -> Sandboxes:
        """A manager that does not run yet."""
        events = EventHub()
        manager = SandboxManager(driver, records, events, Defaults(rootfs=ROOTFS))
        return cls(manager, driver, records, events, fake_guest(sandboxes=manager))

    async def create(self, sandbox_id: str = "box", *, until: Action = Action.READY, **spec: Any) -> Sandbox:  # noqa: ANN401  of a Spec
        """A new sandbox, once it is ready, or what else it shall be."""
        with self.events.subscribe(sandbox_id, until) as happened:
            await self.manager.create(Spec(id=sandbox_id, **spec))
            await anext(happened)
        return self.manager.get(sandbox_id)

    def script(self, *argv: str) -> Scripted:
        """What a command line does from now on."""
        program = Scripted()
        self.driver.programs[argv or (SCRIPTED,)] = program
        return program


@pytest.fixture
async def sandboxes(nursery: trio.Nursery) -> AsyncIterator[Sandboxes]:
    sandboxes = Sandboxes.of(FakeDriver(), FakeRecords())
    nursery.start_soon(sandboxes.manager.run)
    await sandboxes.manager.opened()
    yield sandboxes
    nursery.cancel_scope.cancel()


@define(eq=False)
class Rig:
    """An agent, and a peer of it."""

    sandboxes: Sandboxes
    peer: MemoryPeer

    async def ask(self, message_type: MessageType, message: Message | bytes = b"", trace_id: str = "t") -> Frame:
        """Send a request, and return what comes next."""
        await self.peer.send(message_type, message, trace_id=trace_id)
        return await self.peer.receive()

    async def refusal(self, message_type: MessageType, message: Message | bytes = b"") -> ErrorReply:
        """The error that answers a request."""
        frame = await self.ask(message_type, message)
        assert frame.type == MessageType.Error
        assert frame.trace_id == "t"
        return ErrorReply.decode(frame.payload)

    async def next(self, kind: type[ReplyT]) -> ReplyT:
        """The next reply, of this kind."""
        frame = await self.peer.receive()
        assert frame.type != MessageType.Error, ErrorReply.decode(frame.payload)
        return kind.FromString(frame.payload)

    def hang_up(self) -> None:
        self.peer.stream.send_stream.close()
        self.peer.stream.receive_stream.close()


@pytest.fixture
async def rig(sandboxes: Sandboxes) -> AsyncIterator[Rig]:
    async with memory_connection(guest=sandboxes.guest) as peer:
        yield Rig(sandboxes, peer)


@define(eq=False)
class SocketRig:
    """The same over a real socket, whose buffers hold some hundred KiB and no more: for peers that do not read."""

    sandboxes: Sandboxes
    peer: trio.SocketStream
    _decoder: FrameDecoder = field(init=False, factory=FrameDecoder)
    _frames: list[Frame] = field(init=False, factory=list)

    async def send(self, message_type: MessageType, message: Message, trace_id: str = "t") -> None:
        await self.peer.send_all(encode_frame(message_type, trace_id, message.SerializeToString()))

    async def receive(self) -> Frame:
        while not self._frames:
            data = await self.peer.receive_some()
            assert data
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)


@pytest.fixture
async def socket_rig(sandboxes: Sandboxes, nursery: trio.Nursery) -> AsyncIterator[SocketRig]:
    context = Context(guest=sandboxes.guest, version="0")
    theirs, ours = socket.socketpair()
    connection = Connection(SocketTransport(ours), default_registry(), context, Limits(), "test")
    nursery.start_soon(connection.serve)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as peer:
        yield SocketRig(sandboxes, peer)
