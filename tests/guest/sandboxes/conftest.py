"""Managers with a driver in memory, and the drivers that the contract is for, each in a world of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import pytest
import trio
from attrs import Factory, define, field
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import ResourceLimits, Spec
from arcbox_guest.sandboxes.records import Records
from arcbox_guest.sandboxes.testing import ROOTFS, FakeDriver
from arcbox_guest.sandboxes.times import Times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from types import ModuleType

    from arcbox_guest.sandboxes.driver import Driver
    from arcbox_guest.sandboxes.model import Action

pytest.register_assert_rewrite("tests.guest.sandboxes.stories")

OCI_WORLD = Path(__file__).with_name("oci_world.py")
"""The world of `guest.sandboxes.oci.driver.OciDriver`, with two functions:

`missing(runtime) -> str`: what this machine lacks for it, as a reason to skip; empty if nothing.
`open_world(runtime, directory)`: an async context manager of a `World`.
"""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  a directory of the test's own is made there

MIDNIGHT_NS = 1_767_225_600_000_000_000
"""When the clock of every test begins."""


@define(eq=False)
class Witness(EventHub):
    """An event hub that remembers what it was told."""

    told: list[tuple[str, Action, Mapping[str, str]]] = Factory(list)

    def publish(self, sandbox_id: str, action: Action, attributes: Mapping[str, str] | None = None) -> None:
        self.told.append((sandbox_id, action, attributes or {}))
        super().publish(sandbox_id, action, attributes)

    def of(self, sandbox_id: str) -> list[str]:
        """The names of what happened to one sandbox."""
        return [str(action) for subject, action, _ in self.told if subject == sandbox_id]


def now_ns() -> int:
    """Trio's time, as if it were the world's."""
    return MIDNIGHT_NS + round(trio.current_time() * 1e9)


async def inline(function: Callable[..., object], *args: object) -> None:
    """In place of a thread, which the autojump clock would not wait for."""
    await trio.lowlevel.checkpoint()
    function(*args)
    await trio.lowlevel.checkpoint()


@define(eq=False)
class FakeAgent:
    """What an agent is to its sandboxes: it can be started, and killed, and started again."""

    records: Records
    nursery: trio.Nursery
    driver: FakeDriver = Factory(FakeDriver)
    witness: Witness = Factory(lambda: Witness(now_ns))
    manager: SandboxManager = field(init=False)
    _scope: trio.CancelScope = field(init=False)
    _stepped: float = 0.0
    """Seconds by which the clock is ahead of Trio's."""

    _boots: int = 1

    def start(self) -> None:
        times = Times(lambda: now_ns() + round(self._stepped * 1e9), trio.current_time, lambda: f"boot {self._boots}")
        self.manager = SandboxManager(self.driver, self.records, self.witness, Defaults(rootfs=ROOTFS), times)
        self._scope = trio.CancelScope()
        self.nursery.start_soon(self._run, self.manager, self._scope)

    def step_clock(self, by: float) -> None:
        self._stepped += by

    def reboot(self) -> None:
        """What ran is not there any more."""
        self._boots += 1

    async def kill(self) -> None:
        """End the manager; what is not settled then stays as it is."""
        self._scope.cancel()
        await wait_all_tasks_blocked()

    async def _run(self, manager: SandboxManager, scope: trio.CancelScope) -> None:
        with scope:
            await manager.run()

    async def create(self, spec: Spec) -> None:
        """Create a sandbox, and wait until it is as far as it gets."""
        await self.manager.create(spec)
        await wait_all_tasks_blocked()

    def output(self, sandbox_id: str) -> bytes:
        """What is kept of what the initial command wrote."""
        return self.records.output(sandbox_id).path.read_bytes()

    def state(self, sandbox_id: str) -> str:
        return str(self.manager.get(sandbox_id).state)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records", run_sync=inline)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A directory where many files are made in no time, if the machine has such a place."""
    if not SHARED_MEMORY.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=SHARED_MEMORY, prefix="arcbox-test-") as directory:
        yield Path(directory)


@pytest.fixture
async def agent(records: Records) -> AsyncIterator[FakeAgent]:
    """An agent with no sandboxes, that runs."""
    async with trio.open_nursery() as nursery:
        agent = FakeAgent(records, nursery)
        agent.start()
        await wait_all_tasks_blocked()
        yield agent
        nursery.cancel_scope.cancel()


class World(Protocol):
    """A driver, and what only its world knows how to do."""

    @property
    def driver(self) -> Driver:
        """The driver."""

    @property
    def rootfs(self) -> str:
        """A root file system with a busybox: applets in /bin, users root and nobody (65534), a directory /tmp."""

    def kill_init(self, sandbox_id: str) -> None:
        """Kill a sandbox's init, from outside."""

    def leftovers(self) -> list[str]:
        """What there is of any sandbox on the machine, in words: processes, mounts, cgroups, files."""


@define(eq=False)
class FakeWorld:
    """Nothing but the driver."""

    driver: FakeDriver = field(init=False, factory=FakeDriver)
    rootfs: str = field(init=False, default=ROOTFS)

    def kill_init(self, sandbox_id: str) -> None:
        self.driver.sandboxes[sandbox_id].lose_init("its init was killed by signal 9")

    def leftovers(self) -> list[str]:
        return list(self.driver.sandboxes)


@pytest.fixture(params=["fake", "crun", "runc"])
def technique(request: pytest.FixtureRequest) -> str:
    """A driver's name, or that of a runtime of the `oci` driver."""
    name = str(request.param)
    if name != "fake":
        missing = load(OCI_WORLD).missing(name) if OCI_WORLD.exists() else "this tree has no oci driver yet"
        if missing:
            pytest.skip(missing)
    return name


@pytest.fixture
async def world(technique: str, tmp_path: Path) -> AsyncIterator[World]:
    """Every driver in turn."""
    if technique == "fake":
        yield FakeWorld()
    else:
        async with load(OCI_WORLD).open_world(technique, tmp_path) as oci:
            yield oci


def load(path: Path) -> ModuleType:
    """A module of tests: they are no package, so it can't be imported by name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def driver(world: World) -> Driver:
    return world.driver


@pytest.fixture
async def spec(world: World) -> AsyncIterator[Spec]:
    """What the sandbox of a contract test shall be; it is gone after the test."""
    yield Spec(id="contract", rootfs=world.rootfs, limits=ResourceLimits(vcpus=1, memory_mib=64))
    await world.driver.destroy("contract")
