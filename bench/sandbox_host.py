"""A host that asks for sandboxes, over blocking sockets."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from attrs import define, field

from arcbox_guest.sandboxes.busybox import build
from arcbox_protocol import FrameDecoder, MessageType, arcbox_sandbox_v1, encode_frame, sandbox_v1
from bench import processes
from bench.client import UnexpectedReplyError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

    from arcbox_protocol import Frame
    from bench.processes import Server
    from bench.stage import Stage

_TRACE_ID = "4bf92f3577b34da6"
_PATIENCE = 30
"""Seconds for an execution."""

_CHUNK = 1 << 20
_BUFFER = 1 << 20
_LENGTH = struct.Struct(">I")
_LAST_FRAME = 1024
"""Bytes below which a frame may be the one with the exit code."""


def sandbox_settings(stage: Stage) -> str:
    """The section of an agent's settings that keeps sandboxes in the stage's directory, with its `rootfs`."""
    return f'\n[sandbox]\ndata_dir = "{stage.directory / "data"}"\nrootfs = "{stage.directory / "rootfs"}"\n'


def sandbox_agent(stage: Stage, *, apart: bool = False) -> tuple[Server, SandboxHost, SandboxHost]:
    """An agent for sandboxes of busybox; a connection to ask it, and one that has subscribed to its events.

    Its root file system is `rootfs` in the stage's directory, and what it keeps is in `data`.

    Args:
        stage: where the agent is started.
        apart: in a network namespace of its own.
    """
    build(stage.directory / "rootfs")
    agent = stage.enter(processes.agent(stage.directory, settings=sandbox_settings(stage), apart=apart))
    host, events = SandboxHost(stage.connect(agent)), SandboxHost(stage.connect(agent))
    events.subscribe()
    return agent, host, events


@define
class SandboxHost:
    """One connection, and one request at a time."""

    connection: socket.socket
    _decoder: FrameDecoder = field(init=False, factory=FrameDecoder)
    _frames: list[Frame] = field(init=False, factory=list)

    def create(self, events: SandboxHost, sandbox_id: str, memory_mib: int = 64, network: str = "none") -> None:
        """Make a sandbox, and wait for its event `ready`, to which `events` has subscribed."""
        self.begin(sandbox_id, memory_mib, network)
        events.wait_for("ready", sandbox_id)

    def begin(self, sandbox_id: str, memory_mib: int = 64, network: str = "none") -> None:
        """Ask for a sandbox, whose creation then is under way."""
        limits = sandbox_v1.ResourceLimits(vcpus=1, memory_mib=memory_mib)
        mode = sandbox_v1.NetworkSpec(mode=network)
        request = sandbox_v1.CreateSandboxRequest(id=sandbox_id, limits=limits, network=mode)
        self._ask(MessageType.SandboxCreateRequest, request)

    def remove(self, sandbox_id: str) -> None:
        """Remove it, and wait until that is done."""
        request = sandbox_v1.RemoveSandboxRequest(id=sandbox_id, force=True)
        self._ask(MessageType.SandboxRemoveRequest, request)

    def checkpoint(self, sandbox_id: str) -> str:
        """Checkpoint a sandbox; the id of the snapshot."""
        request = sandbox_v1.CheckpointRequest(sandbox_id=sandbox_id)
        reply = self._ask(MessageType.SandboxCheckpointRequest, request)
        return sandbox_v1.CheckpointResponse.FromString(reply.payload).snapshot_id

    def restore(self, snapshot_id: str, sandbox_id: str) -> None:
        """Have a sandbox restored from a snapshot, which is ready then."""
        request = sandbox_v1.RestoreRequest(id=sandbox_id, snapshot_id=snapshot_id)
        self._ask(MessageType.SandboxRestoreRequest, request)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete one."""
        request = sandbox_v1.DeleteSnapshotRequest(snapshot_id=snapshot_id)
        self._ask(MessageType.SandboxDeleteSnapshotRequest, request)

    def subscribe(self) -> None:
        """Get events from now on."""
        self._send(MessageType.SandboxEventsRequest, sandbox_v1.SandboxEventsRequest())
        self._send(MessageType.PingRequest, None)  # which is answered in order, and so after the subscription has begun
        self._receive()

    def wait_for(self, action: str, sandbox_id: str) -> None:
        """Take events up to this one."""
        while self.next(action) != sandbox_id:
            pass

    def next(self, action: str) -> str:
        """Take events up to the next of this kind; the id of its sandbox."""
        while True:
            event = sandbox_v1.SandboxEvent.FromString(self._receive().payload)
            if event.action == action:
                return event.sandbox_id
            if event.action == "failed":
                raise UnexpectedReplyError(f"sandbox {event.sandbox_id} failed: {event.attributes['error']}")

    def run(self, sandbox_id: str, *command: str) -> None:
        """Run a command that says nothing, and wait for its exit code, 0."""
        self._send(MessageType.SandboxRunRequest, sandbox_v1.RunRequest(id=sandbox_id, cmd=command))
        self._check_exit(self._receive().payload)

    def execute(self, sandbox_id: str, *command: str) -> None:
        """Start a command as an execution, and wait for its end by itself."""
        start = arcbox_sandbox_v1.StartExecutionRequest(sandbox_id=sandbox_id, cmd=command)
        started = arcbox_sandbox_v1.Execution.FromString(self._ask(MessageType.StartExecutionRequest, start).payload)
        wait = arcbox_sandbox_v1.WaitExecutionRequest(
            sandbox_id=sandbox_id, execution_id=started.id, timeout_seconds=_PATIENCE
        )
        ended = arcbox_sandbox_v1.Execution.FromString(self._ask(MessageType.WaitExecutionRequest, wait).payload)
        if ended.exit_status.WhichOneof("status") != "code" or ended.exit_status.code:
            raise UnexpectedReplyError(f"the execution ended with {ended.exit_status} {ended.error}")

    def write_file(self, sandbox_id: str, path: str, chunks: Sequence[bytes]) -> None:
        """Write a file, of chunks as they are on the wire."""
        self._send(MessageType.SandboxFileWriteRequest, sandbox_v1.WriteFileOpen(id=sandbox_id, path=path))
        for chunk in chunks:
            self.connection.sendall(chunk)
        self._receive()

    def read_file(self, sandbox_id: str, path: str) -> int:
        """Read a file; how many bytes came in the frames of its data. They are counted, not looked at."""
        self._send(MessageType.SandboxFileReadRequest, sandbox_v1.ReadFileRequest(id=sandbox_id, path=path))
        return _read_frames(self.connection, lambda payload: sandbox_v1.FileChunk.FromString(payload).done)

    def stream(self, sandbox_id: str, *command: str) -> int:
        """Run a command; how many bytes came in the frames of its output. They are counted, not looked at."""
        self._send(MessageType.SandboxRunRequest, sandbox_v1.RunRequest(id=sandbox_id, cmd=command))
        return _read_frames(self.connection, self._check_exit)

    def _ask(self, kind: MessageType, message: Message) -> Frame:
        self._send(kind, message)
        return self._receive()

    def _send(self, kind: MessageType, message: Message | None) -> None:
        payload = b"" if message is None else message.SerializeToString()
        self.connection.sendall(encode_frame(kind, _TRACE_ID, payload))

    def _receive(self) -> Frame:
        while not self._frames:
            self._frames += self._decoder.feed(_some(self.connection))
        frame = self._frames.pop(0)
        if frame.type == MessageType.Error:
            raise UnexpectedReplyError(f"answered with {frame.payload!r}")
        return frame

    def _check_exit(self, payload: bytes) -> bool:
        output = sandbox_v1.RunOutput.FromString(payload)
        if output.done and output.exit_code != 0:
            raise UnexpectedReplyError(f"the command ended with {output.exit_code}")
        return output.done


def file_chunks(size: int) -> list[bytes]:
    """The frames of a file's content, for `SandboxHost.write_file`."""
    data = os.urandom(_CHUNK)
    chunk = sandbox_v1.FileChunk(data=data).SerializeToString()
    last = sandbox_v1.FileChunk(done=True).SerializeToString()
    payloads = [chunk] * (size // _CHUNK) + [last]
    return [encode_frame(MessageType.SandboxFileChunk, _TRACE_ID, payload) for payload in payloads]


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(_BUFFER)
    if not data:
        raise UnexpectedReplyError("the agent closed the connection")
    return data


def _read_frames(connection: socket.socket, is_last: Callable[[bytes], bool]) -> int:
    """Receive frames up to the last, into one buffer; the bytes of all but that, as `recv` counts them."""
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    total, start, end = 0, 0, 0
    while True:
        # From here on: what is left of a frame's beginning, or the whole of a short one.
        while end - start < _LENGTH.size:
            start, end = _more(connection, view, start, end)
        (length,) = _LENGTH.unpack_from(buffer, start)
        size = _LENGTH.size + length
        if size <= _LAST_FRAME:
            while end - start < size:
                start, end = _more(connection, view, start, end)
            trace = int.from_bytes(buffer[start + 8 : start + 10], "big")
            if is_last(bytes(view[start + 10 + trace : start + size])):
                return total
        total += size
        left = size - (end - start)
        if left <= 0:
            start += size
            continue
        while left > 0:
            received = connection.recv_into(view[: min(left, _BUFFER)])
            if not received:
                raise UnexpectedReplyError("the agent closed the connection")
            left -= received
        start = end = 0


def _more(connection: socket.socket, view: memoryview, start: int, end: int) -> tuple[int, int]:
    view[: end - start] = bytes(view[start:end])
    end -= start
    received = connection.recv_into(view[end:])
    if not received:
        raise UnexpectedReplyError("the agent closed the connection")
    return 0, end + received
