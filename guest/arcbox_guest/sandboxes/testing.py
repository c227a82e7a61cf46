"""A driver in memory, for tests of whatever needs sandboxes. It holds to the drivers' contract.

driver = FakeDriver()
driver.faults["create"] = GuestError("no space left")   # raised; a trio.Event makes it wait
async with driver.process("web", ExecSpec(argv=("cat",))) as process: ...
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, field

from arcbox_guest.errors import (
    ConflictError,
    GuestError,
    InvalidArgumentError,
    NotSupportedError,
    OutOfRangeError,
    UnavailableError,
)
from arcbox_guest.sandboxes import _fake_programs as programs
from arcbox_guest.sandboxes.detached import Channel, Exit, Piece
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import SIGNALLED, Sandbox, Statistics
from arcbox_guest.sandboxes.output_log import OutputLog
from arcbox_guest.sandboxes.records import Records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence

    from arcbox_guest.sandboxes._fake_programs import Program
    from arcbox_guest.sandboxes.detached import DetachedSpec
    from arcbox_guest.sandboxes.model import ExecSpec, Spec, TerminalSize

ROOTFS: Final = "/rootfs"
"""The only root file system that works."""

BROKEN: Final = "/broken"
"""One that is there, and can't be mounted."""

_LEFT_BEHIND: Final = 1.0
"""Seconds that the output of a detached process may stay open after its end."""

MANY_LAYERS: Final = 3
"""Beyond which it merges them."""

_KILLED: Final = SIGNALLED + programs.SIGKILL
_DIRECTORIES: Final = ("/", "/tmp")  # noqa: S108  names in a sandbox that does not exist
_UIDS: Final = {"root": 0, "nobody": 65534}


def fake_manager(driver: FakeDriver | None = None) -> SandboxManager:
    """A manager of sandboxes in memory. They are there while its `run` runs."""
    return SandboxManager(driver or FakeDriver(), FakeRecords(), EventHub(), Defaults(rootfs=ROOTFS))


class FakeRecords(Records):
    """Records that are kept on no disk, of commands whose output is not kept at all."""

    def __init__(self) -> None:
        self._sandboxes: dict[str, Sandbox] = {}

    def output(self, sandbox_id: str) -> OutputLog:
        async def nowhere(*_: object) -> None:
            await trio.lowlevel.checkpoint()

        return OutputLog(Path("/nowhere", sandbox_id), nowhere)

    async def load(self) -> list[Sandbox]:
        await trio.lowlevel.checkpoint()
        return list(self._sandboxes.values())

    async def save(self, sandbox: Sandbox, *, durable: bool = True) -> None:  # noqa: ARG002  there is no disk
        await trio.lowlevel.checkpoint()
        self._sandboxes[sandbox.id] = sandbox

    async def delete(self, sandbox_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self._sandboxes.pop(sandbox_id, None)


@define(eq=False)
class FakeOutput:
    """What a fake process writes."""

    _drained: Callable[[], None]
    _data: bytearray = field(init=False, factory=bytearray)
    _ended: bool = field(init=False, default=False)
    _changed: trio.Event = field(init=False, factory=trio.Event)

    def write(self, data: bytes) -> None:
        self._data += data
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    async def receive(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        while not self._data and not self._ended:
            self._changed = trio.Event()
            await self._changed.wait()
        piece = memoryview(bytes(self._data[: programs.PIECE]))
        del self._data[: programs.PIECE]
        if piece and not self._data and not self._ended:
            self._drained()
        return piece

    def unread(self) -> int:
        return len(self._data)

    def _wake(self) -> None:
        self._changed.set()


@define(eq=False)
class FakeProcess:
    """A process that is nothing but its program's answers to what happens to it."""

    sandbox: FakeSandbox
    command: ExecSpec
    uid: int
    program: Program
    size: TerminalSize | None
    """Of its terminal."""

    stdout: FakeOutput = field(init=False)
    stderr: FakeOutput | None = field(init=False)
    exit_code: int | None = field(init=False, default=None)
    descendants: bool = field(init=False, default=False)
    """Whether it left any behind that live."""

    failure: str = field(init=False, default="")
    detached: bool = field(init=False, default=False)
    """Whether it is nobody's who could lose it."""

    _holds_output: bool = field(init=False, default=False)
    _stdin_open: bool = field(init=False, default=True)
    _exited: trio.Event = field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.stdout = FakeOutput(self._drained)
        self.stderr = None if self.size else FakeOutput(self._drained)

    @property
    def sandbox_id(self) -> str:
        return self.sandbox.spec.id

    @property
    def env(self) -> Mapping[str, str]:
        return {"PATH": "/bin", **self.sandbox.spec.env, **self.command.env}

    @property
    def working_dir(self) -> str:
        return self.command.working_dir or self.sandbox.spec.working_dir or "/"

    @property
    def alive(self) -> bool:
        """Whether anything of its tree is."""
        return self.exit_code is None or self.descendants

    async def send_stdin(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        await self.sandbox.thawed()
        if not self.program.reads and len(data) > programs.PIECE:
            await self._exited.wait()
        if self.exit_code is not None or not self._stdin_open:
            raise trio.BrokenResourceError("nobody reads that")
        self.program.stdin(self, data)

    async def close_stdin(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.exit_code is None and self._stdin_open:
            self.program.stdin(self, b"")
        self._stdin_open = False

    def resize(self, size: TerminalSize) -> None:
        if self.size is not None:
            self.size = size
            self.program.resized(self, size)

    async def wait(self) -> int:
        await self._exited.wait()
        assert self.exit_code is not None  # noqa: S101  for mypy
        return self.exit_code

    async def kill(self) -> None:
        await trio.lowlevel.checkpoint()
        self.die()

    def run_out_of_memory(self) -> None:
        """The kernel kills it for the memory limit of its sandbox."""
        self.sandbox.out_of_memory_kills += 1
        self.die()

    def die(self) -> None:
        """SIGKILL for the whole tree."""
        self.descendants = False
        self.exit(_KILLED)

    def terminate(self) -> None:
        """SIGTERM for the whole tree."""
        self.descendants = False
        if self.exit_code is None:
            self.program.terminated(self)
        self._settle()

    def write(self, data: bytes) -> None:
        self.stdout.write(data)

    def write_error(self, data: bytes) -> None:
        (self.stderr or self.stdout).write(data)

    def leave_behind(self, *, holds_output: bool) -> None:
        """Have a descendant that outlives it."""
        self.descendants, self._holds_output = True, holds_output

    def exit(self, exit_code: int) -> None:
        """End, unless it has."""
        if self.exit_code is None:
            self.exit_code = exit_code
            self._exited.set()
        self._settle()

    def _settle(self) -> None:
        if self.exit_code is not None and not (self.descendants and self._holds_output):
            self.stdout.end()
            if self.stderr is not None:
                self.stderr.end()
        self.sandbox.processes_changed()

    def _drained(self) -> None:
        if self.exit_code is None:
            self.program.drained(self)


@define(eq=False)
class FakeRecording:
    """What is known of a detached process, by whatever agent."""

    spec: DetachedSpec
    process: FakeProcess
    written: dict[Channel, bytearray] = field(init=False, factory=lambda: {channel: bytearray() for channel in Channel})
    stdin: int = 0
    """Bytes of input."""

    stdin_closed: bool = False
    exit: Exit | None = None


@define(eq=False)
class FakeDetached:
    """A detached process, as one agent sees it."""

    _recording: FakeRecording
    _changed: trio.Event = field(init=False, factory=trio.Event)
    _ended: trio.Event = field(init=False, factory=trio.Event)
    _complete: bool = field(init=False, default=False)

    @property
    def name(self) -> str:
        return self._recording.spec.name

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        return self._recording.spec.facts

    @property
    def terminal(self) -> bool:
        return self._recording.spec.command.terminal is not None

    @property
    def exit(self) -> Exit | None:
        return self._recording.exit

    @property
    def stdin_written(self) -> int:
        return self._recording.stdin

    @property
    def stdin_closed(self) -> bool:
        return self._recording.stdin_closed or self.exit is not None

    async def run(self) -> Exit:
        process = self._recording.process
        async with trio.open_nursery() as pumps:
            pumps.start_soon(self._pump, Channel.STDOUT, process.stdout)
            if process.stderr is not None:
                pumps.start_soon(self._pump, Channel.STDERR, process.stderr)
            code = await process.wait()
            self._recording.exit = self._recording.exit or Exit(
                code=code, at=trio.current_time(), error=process.failure
            )
            self._ended.set()
            pumps.cancel_scope.deadline = trio.current_time() + _LEFT_BEHIND
        self._complete = True
        self._wake()
        return await self.wait()

    async def wait(self) -> Exit:
        await self._ended.wait()
        assert self.exit is not None  # noqa: S101  for mypy
        return self.exit

    def length(self, channel: Channel) -> int:
        return len(self._recording.written[channel])

    async def read(self, channel: Channel, offset: int) -> Piece:
        await trio.lowlevel.checkpoint()
        if offset > self.length(channel):
            raise OutOfRangeError(f"{channel} has {self.length(channel)} bytes yet")
        while self.length(channel) == offset and not self._complete:
            await self._changed.wait()
        return Piece(offset, bytes(self._recording.written[channel][offset : offset + programs.PIECE]))

    async def write_stdin(self, offset: int, data: bytes, *, last: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        recording = self._recording
        if offset > recording.stdin:
            raise OutOfRangeError(f"stdin has got {recording.stdin} bytes yet")
        new = data[recording.stdin - offset :]
        if self.stdin_closed:
            return
        if new:
            recording.stdin += len(new)
            await recording.process.send_stdin(new)
        if last:
            recording.stdin_closed = True
            await recording.process.close_stdin()

    def resize(self, size: TerminalSize) -> None:
        self._recording.process.resize(size)

    async def signal(self, number: int) -> None:
        await trio.lowlevel.checkpoint()
        process = self._recording.process
        if number == programs.SIGTERM and process.exit_code is None:
            process.program.terminated(process)
        elif number == programs.SIGKILL:
            process.exit(_KILLED)

    async def kill(self) -> None:
        await self._recording.process.kill()

    async def forget(self) -> None:
        await trio.lowlevel.checkpoint()
        del self._recording.process.sandbox.recordings[self.name]

    async def _pump(self, channel: Channel, output: FakeOutput) -> None:
        while data := await output.receive():
            self._recording.written[channel] += data
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@define(eq=False)
class FakeSandbox:
    """A sandbox of the fake driver."""

    spec: Spec
    complete: bool = False
    """Whether its creation was finished."""

    up: bool = False
    """Whether its init runs."""

    processes: list[FakeProcess] = Factory(list)
    ports: set[int] = Factory(set)
    """On which something in it listens."""

    recordings: dict[str, FakeRecording] = Factory(dict)
    """Of its detached processes, by their names."""

    paused: bool = False
    reason: str = ""
    """Why its init has ended."""

    out_of_memory_kills: int = 0

    _ended: trio.Event = field(init=False, factory=trio.Event)
    _idle: trio.Event = field(init=False, factory=trio.Event)
    _thawed: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _signalled: set[FakeProcess] = field(init=False, factory=set)
    """Those that get their SIGTERM when they go on."""

    def resume(self) -> None:
        self.paused = False
        self._thawed.unpark_all()
        while self._signalled:
            self._signalled.pop().terminate()

    async def thawed(self) -> None:
        while self.paused and self.up:
            await self._thawed.park()

    def terminate(self) -> None:
        """SIGTERM for all but the init."""
        self._signalled.update(self.processes)
        if not self.paused:
            self.resume()

    def stop(self) -> None:
        self.up = False
        self._thawed.unpark_all()
        for process in list(self.processes):
            process.die()

    def lose_init(self, reason: str) -> None:
        """Its init ends, which nobody asked for, and all else with it."""
        if self.up:
            self.reason = reason
            self.stop()
            self._ended.set()

    async def ended(self) -> str:
        await self._ended.wait()
        return self.reason

    async def idle(self) -> None:
        while self.processes:
            self._idle = trio.Event()
            await self._idle.wait()

    def processes_changed(self) -> None:
        self.processes = [process for process in self.processes if process.alive]
        if not self.processes:
            self._idle.set()


def _check(spec: Spec) -> None:
    if spec.rootfs not in (ROOTFS, BROKEN) and not spec.image:
        raise InvalidArgumentError(f"there is no root file system {spec.rootfs}")
    for mount in spec.mounts:
        if mount.source not in _DIRECTORIES:
            raise InvalidArgumentError(f"there is no {mount.source} to mount")
    if spec.user:
        _uid(spec.user, spec.id)


def _mount(spec: Spec) -> None:
    if spec.rootfs == BROKEN:
        raise GuestError(f"the root file system {BROKEN} can't be mounted")


def _uid(user: str, sandbox_id: str) -> int:
    uid = int(user) if user.isdecimal() else _UIDS.get(user)
    if uid is None:
        raise InvalidArgumentError(f"there is no user {user!r} in sandbox {sandbox_id}")
    return uid


@define(eq=False)
class FakeDriver:
    """Sandboxes that exist nowhere else; they outlive the manager, as real ones do."""

    faults: dict[str, Exception | trio.Event] = Factory(dict)
    """By the name of the method: raised, or waited for."""

    programs: dict[tuple[str, ...], Program] = Factory(dict)
    """What command lines do, beyond those of `_fake_programs`."""

    files: Path | None = None
    """The root directory of every sandbox, of a test's own; without it they have no files."""

    name: str = field(init=False, default="fake")
    sandboxes: dict[str, FakeSandbox] = field(init=False, factory=dict)
    layers: set[str] = field(init=False, factory=set)
    """Kept by checkpoints."""

    calls: list[tuple[str, str]] = field(init=False, factory=list)
    """The name of each method that was called, with the sandbox's id."""

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()

    async def check(self, spec: Spec) -> None:
        await self._begin("check", spec.id)
        _check(spec)

    async def create(self, spec: Spec) -> Mapping[str, str]:
        sandbox = self.sandboxes[spec.id] = FakeSandbox(spec)
        try:
            await self._begin("create", spec.id)
            _check(spec)
            _mount(spec)
        except Exception:
            del self.sandboxes[spec.id]
            raise
        sandbox.complete = sandbox.up = True
        return {"init": spec.id}

    async def adopt(self, spec: Spec, facts: Mapping[str, str]) -> None:
        await self._begin("adopt", spec.id)
        assert facts == {"init": spec.id}  # noqa: S101  what `create` said
        for process in list(self._up(spec.id).processes):
            if process.exit_code is None and not process.detached:
                process.die()

    @asynccontextmanager
    async def process(self, sandbox_id: str, command: ExecSpec) -> AsyncIterator[FakeProcess]:
        await self._begin("process", sandbox_id)
        process = self._start(sandbox_id, command)
        try:
            yield process
        finally:
            if process.exit_code is None:
                process.die()

    async def start_detached(self, sandbox_id: str, spec: DetachedSpec) -> FakeDetached:
        await self._begin("start_detached", sandbox_id)
        recordings = self._up(sandbox_id).recordings
        if spec.name in recordings:
            raise ConflictError(f"there is a process {spec.name} in sandbox {sandbox_id} already")
        process = self._start(sandbox_id, spec.command, merged=spec.merged)
        process.detached = True
        recording = recordings[spec.name] = FakeRecording(spec, process)
        if not spec.stdin and not spec.command.terminal:
            recording.stdin_closed = True
            await process.close_stdin()
        return FakeDetached(recordings[spec.name])

    async def detached(self, sandbox_id: str) -> Sequence[FakeDetached]:
        await self._begin("detached", sandbox_id)
        sandbox = self.sandboxes.get(sandbox_id)
        return [] if sandbox is None else [FakeDetached(recording) for recording in sandbox.recordings.values()]

    @contextmanager
    def root(self, sandbox_id: str) -> Iterator[int]:
        self._up(sandbox_id)
        if self.files is None:
            raise NotSupportedError(f"sandbox {sandbox_id} has no files: it is in memory")
        directory = os.open(self.files, os.O_PATH | os.O_DIRECTORY)
        try:
            yield directory
        finally:
            os.close(directory)

    @contextmanager
    def network_namespace(self, sandbox_id: str) -> Iterator[int]:
        self._up(sandbox_id)
        with Path("/proc/self/ns/net").open("rb") as own:
            yield own.fileno()

    async def pause(self, sandbox_id: str) -> None:
        await self._begin("pause", sandbox_id)
        self._up(sandbox_id).paused = True

    async def resume(self, sandbox_id: str) -> None:
        await self._begin("resume", sandbox_id)
        self._up(sandbox_id).resume()

    def is_paused(self, sandbox_id: str) -> bool:
        sandbox = self.sandboxes.get(sandbox_id)
        return sandbox is not None and sandbox.paused

    async def terminate(self, sandbox_id: str) -> None:
        await self._begin("terminate", sandbox_id)
        self._up(sandbox_id).terminate()

    async def idle(self, sandbox_id: str) -> None:
        await self._begin("idle", sandbox_id)
        await self._up(sandbox_id).idle()

    async def ended(self, sandbox_id: str) -> str:
        await self._begin("ended", sandbox_id)
        return await self.sandboxes[sandbox_id].ended()

    async def stop(self, sandbox_id: str) -> None:
        await self._begin("stop", sandbox_id)
        if sandbox_id in self.sandboxes:
            self.sandboxes[sandbox_id].stop()

    async def destroy(self, sandbox_id: str) -> None:
        await self._begin("destroy", sandbox_id)
        if sandbox_id in self.sandboxes:
            self.sandboxes.pop(sandbox_id).stop()

    async def statistics(self, sandbox_id: str) -> Statistics:
        await self._begin("statistics", sandbox_id)
        processes = len(self._up(sandbox_id).processes) + 1
        return Statistics(cpu_seconds=0.25, memory_bytes=700_000 * processes, processes=processes)

    def out_of_memory_kills(self, sandbox_id: str) -> int:
        sandbox = self.sandboxes.get(sandbox_id)
        return sandbox.out_of_memory_kills if sandbox else 0

    async def checkpoint(self, sandbox_id: str) -> tuple[str, ...]:
        await self._begin("checkpoint", sandbox_id)
        below = self._up(sandbox_id).spec.layers
        layers = (f"layer-{len(self.calls)}", *below)
        self.layers.update(layers)
        return layers

    async def flatten(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        await self._begin("flatten", "")
        if len(layers) <= MANY_LAYERS:
            return layers
        if not self.layers.issuperset(layers):
            raise GuestError("the layers are not there any more")
        merged = f"merged-{len(self.calls)}"
        self.layers.add(merged)
        return (merged,)

    async def remove_unused(self, used: Callable[[], Collection[str]]) -> None:
        await self._begin("remove_unused", "")
        of_sandboxes = {layer for sandbox in self.sandboxes.values() for layer in sandbox.spec.layers}
        self.layers &= of_sandboxes | set(used())

    async def listening(self, sandbox_id: str) -> set[int]:
        await self._begin("listening", sandbox_id)
        return self._up(sandbox_id).ports

    async def existing(self) -> Sequence[str]:
        await self._begin("existing", "")
        return list(self.sandboxes)

    async def close(self) -> None:
        """Nothing: it has nothing."""

    async def _begin(self, method: str, sandbox_id: str) -> None:
        self.calls.append((method, sandbox_id))
        await trio.lowlevel.checkpoint()
        fault = self.faults.get(method)
        if isinstance(fault, trio.Event):
            await fault.wait()
        elif fault is not None:
            raise fault

    def _start(self, sandbox_id: str, command: ExecSpec, *, merged: bool = False) -> FakeProcess:
        sandbox = self._up(sandbox_id)
        uid = _uid(command.user or sandbox.spec.user or "root", sandbox_id)
        program = self.programs.get(command.argv) or programs.find(command.argv)
        process = FakeProcess(sandbox, command, uid, program, command.terminal)
        if process.working_dir not in _DIRECTORIES:
            raise InvalidArgumentError(f"there is no directory {process.working_dir} in sandbox {sandbox_id}")
        if merged:
            process.stderr = None
        sandbox.processes.append(process)
        program.started(process)
        return process

    def _up(self, sandbox_id: str) -> FakeSandbox:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None or not sandbox.up:
            raise UnavailableError(f"sandbox {sandbox_id} does not run any more: its init has ended")
        return sandbox
