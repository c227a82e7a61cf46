"""What tests of this room share, among it commands whose progress a test decides."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio
from attrs import define, field

from arcbox_handlers import FileReply, QuickCommand, Registry, StreamCommand, UnaryCommand
from arcbox_handlers.files import MmapReadFile
from arcbox_handlers.system import GetSystemInfo, Ping
from arcbox_protocol import MessageType, arcbox_v1, sandbox_v1
from tests.agent.service_manager import Manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    from arcbox_handlers import Acknowledgement, AnyCommand, Context, ReplyStream


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        yield Path(name)


@pytest.fixture
def manager(directory: Path) -> Iterator[Manager]:
    manager = Manager(directory / "notify")
    yield manager
    manager.socket.close()


@define(eq=False)
class Stage:
    """What the commands of one test do, and what became of them."""

    registry: Registry = field(init=False)
    log: list[str] = field(init=False, factory=list)
    """What happened, in order."""

    may_go_on: dict[str, trio.Event] = field(init=False, factory=dict)
    streams: dict[str, ReplyStream] = field(init=False, factory=dict)
    """Those of Talk, by the id in their requests."""

    reply: Callable[[], Message | FileReply | Acknowledgement | None] = field(init=False, default=lambda: None)
    """What Hold answers."""

    error: Exception | None = field(init=False, default=None)
    """What Fail and Quick raise."""

    meanwhile: Callable[[], object] = field(init=False, default=lambda: None)
    """What happens while Quick is carried out."""

    def __attrs_post_init__(self) -> None:
        own = [_bound(kind, self) for kind in (Hold, HoldSlow, Fail, Quick, Talk, Session)]
        self.registry = Registry([Ping, GetSystemInfo, MmapReadFile, *own])

    def gate(self, name: str) -> trio.Event:
        """Set by the test to let the command with that name go on."""
        return self.may_go_on.setdefault(name, trio.Event())


def _bound(kind: AnyCommand, stage: Stage) -> AnyCommand:
    return type(kind.__name__, (kind,), {"stage": stage})


class Hold(UnaryCommand[arcbox_v1.PortBindingsRemoved]):
    """Answers when the gate that is named in its request (Inspect's id) opens; not slow."""

    handles = MessageType.SandboxInspectRequest
    stage: ClassVar[Stage]

    async def __call__(self, context: Context) -> Message | FileReply | Acknowledgement | None:
        return await hold(self.stage, str(getattr(self.request, "id", "")))


class HoldSlow(UnaryCommand[sandbox_v1.StopSandboxRequest]):
    """The same, slow; registered for a stop."""

    handles = MessageType.SandboxStopRequest
    slow = True
    stage: ClassVar[Stage]

    async def __call__(self, context: Context) -> Message | FileReply | Acknowledgement | None:
        return await hold(self.stage, self.request.id)


async def hold(stage: Stage, name: str) -> Message | FileReply | Acknowledgement | None:
    stage.log.append(f"{name} began")
    try:
        await stage.gate(name).wait()
    except trio.Cancelled:
        stage.log.append(f"{name} was cancelled")
        raise
    stage.log.append(f"{name} ended")
    return stage.reply()


class Fail(UnaryCommand[Any]):
    """Raises the stage's error."""

    handles = MessageType.KubernetesStatusRequest
    stage: ClassVar[Stage]

    async def __call__(self, context: Context) -> None:
        assert self.stage.error is not None
        raise self.stage.error


class Quick(QuickCommand[Any]):
    """Does at once what happens meanwhile; then raises the stage's error, if that has one."""

    handles = MessageType.RuntimeStatusRequest
    stage: ClassVar[Stage]

    def __call__(self, context: Context) -> None:
        self.stage.meanwhile()
        if self.stage.error is not None:
            raise self.stage.error


class Talk(StreamCommand[sandbox_v1.SandboxEventsRequest]):
    """A stream that sends what the test sends through it, until it is cancelled; takes no input."""

    handles = MessageType.SandboxEventsRequest
    observes = True
    stage: ClassVar[Stage]

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        self.stage.streams[self.request.id] = stream
        self.stage.log.append("stream began")
        stream.started()
        try:
            await self.stage.gate("stream").wait()
        finally:
            self.stage.log.append("stream ended")
        if self.stage.error is not None:
            raise self.stage.error


class Session(StreamCommand[sandbox_v1.ExecRequest]):
    """Says back every input, prefixed with the id of its request; ends at the end of stdin."""

    handles = MessageType.SandboxExecRequest
    accepts = frozenset({MessageType.SandboxExecInput, MessageType.SandboxExecResize})
    stage: ClassVar[Stage]

    async def __call__(self, context: Context, stream: ReplyStream) -> None:
        self.stage.log.append(f"{self.request.id} began")
        if self.request.id == "deaf":
            await self.stage.gate("deaf").wait()
            return
        async for frame in stream.inputs:
            if not frame.payload:
                break
            data = f"{self.request.id} {frame.type:#x} ".encode() + frame.payload
            await stream.send(sandbox_v1.ExecOutput(stream="stdout", data=data))
        await stream.send(sandbox_v1.ExecOutput(stream="exit", done=True))
        self.stage.log.append(f"{self.request.id} ended")


@pytest.fixture
def stage() -> Stage:
    return Stage()
