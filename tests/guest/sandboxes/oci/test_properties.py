"""Whatever happens, in whatever order, to real sandboxes: the manager's word for them is what is on the machine."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest
import trio
from attrs import define, evolve, field
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from arcbox_guest.sandboxes import life, manager, states
from arcbox_guest.sandboxes.busybox import build
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import ExecSpec, ResourceLimits, Sandbox, Spec, State, TerminalSize
from arcbox_guest.sandboxes.oci.driver import OciDriver
from arcbox_guest.sandboxes.records import Records
from tests.guest.sandboxes import stories
from tests.guest.sandboxes.oci_world import OciWorld, processes
from tests.guest.sandboxes.stories import Client, Happening, Happenings, Listener, Story

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STORIES: Final = int(os.environ.get("ARCBOX_TEST_STORIES", "10"))
"""How many are told with each runtime. What is rare takes hundreds of them."""

NAME: Final = "STORY"
"""A variable in the environment of all processes: who began it, a client by its number, or the initial command."""

INITIAL: Final = "initial"


@define(eq=False)
class OciStory(Story):
    """With sandboxes of an OCI runtime."""

    world: OciWorld
    commands: dict[int, tuple[str, ...]] = field(init=False, factory=dict)
    """What was begun, by the number of the client."""

    def make_manager(self, listener: Listener) -> SandboxManager:
        defaults = Defaults(rootfs=self.world.rootfs, memory_mib=64)
        return SandboxManager(self.world.driver, self.records, listener, defaults)

    async def existing(self) -> list[str]:
        return list(await self.world.driver.existing())

    async def kill_agent(self) -> None:
        """Have it end with its connections, and another begin, with the same files and nothing else."""
        for client in self.clients:
            client.scope.cancel()
        self.agent.cancel()
        await self.ended.wait()
        for client in self.clients:
            await client.ended.wait()
        self.world.driver = OciDriver(self.world.driver.data_dir, self.world.driver.runtime)
        await self.restart()

    def kill_init(self, sandbox_id: str) -> None:
        if sandbox_id in self.world.driver._live:
            # Not by its number, which may be another's by now.
            self.world.driver._live[sandbox_id].watch.signal(signal.SIGKILL)

    async def run_process(self, client: Client, command: ExecSpec, needs: frozenset[State]) -> None:
        number = self.clients.index(client)
        self.commands[number] = command.argv
        await super().run_process(client, evolve(command, env={NAME: str(number)}), needs)

    async def come_to_rest(self) -> None:
        deadline = trio.current_time() + 10
        while True:
            try:
                await self.check_at_rest()
            except AssertionError:
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(0.005)  # neither the kernel nor the manager tells when all is done
            else:
                return

    async def check_driver(self, known: Mapping[str, Sandbox]) -> None:
        world = self.world
        assert set(await world.driver.existing()) <= known.keys()
        for sandbox_id, sandbox in known.items():
            directory = world.driver.data_dir / "sandboxes" / sandbox_id
            inside = list(self.inside(sandbox_id))
            if sandbox.state in states.LIVE:
                self.check_processes(sandbox, inside)
                assert directory.is_dir()
            else:
                assert inside == []
                assert [path for path in world.cgroups() if (path / sandbox_id).exists()] == []
                assert not (world.driver.data_dir / "runtime" / sandbox_id).exists()
                assert not directory.exists() or (sandbox.ready_at > 0 and "restarted" not in sandbox.error)
        assert len(world.mounts()) <= 1  # the image, if there are sandboxes that are made of it
        assert len(list((world.driver.data_dir / "images").glob("*"))) == len(world.mounts())

    def check_processes(self, sandbox: Sandbox, inside: list[str]) -> None:
        running = {number for number, client in enumerate(self.clients) if client.runs}
        running = {number for number in running if self.clients[number].sandbox_id == sandbox.id}
        assert (sandbox.state is State.RUNNING) == bool(running or INITIAL in inside)
        found = {int(name) for name in inside if name.isdecimal()}
        assert running <= found
        assert {self.commands[number] for number in found - running} <= set(LEAVING)

    def inside(self, sandbox_id: str) -> Iterator[str]:
        """Who began the processes that are in a sandbox; nobody its init."""
        for cgroup in self.world.cgroups():
            for pid in processes(cgroup / sandbox_id):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    yield psutil.Process(pid).environ().get(NAME, "")


LEAVING: Final = (
    ("sh", "-c", "sleep 1000 & echo left; exit 3"),
    ("sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 & exit 0"),
)
"""Commands whose end is not that of all that they began."""

COMMANDS = st.builds(
    ExecSpec,
    argv=st.sampled_from(
        [
            *stories.ARGVS,
            *LEAVING,
            ("sh", "-c", "setsid sleep 1000 & sleep 1000"),
            ("sh", "-c", "(trap '' TERM; setsid sleep 1000) & exec yes"),
            ("nowhere",),
            ("/etc/passwd",),
        ]
    ),
    timeout=st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.2]),
    terminal=st.sampled_from([None, None, TerminalSize()]),
    user=st.sampled_from(["", "", "nobody", "nemo"]),
)


def specs(image: Path) -> st.SearchStrategy[Spec]:
    return st.builds(
        Spec,
        id=stories.IDS,
        rootfs=st.sampled_from(["", "", "", str(image), "/nowhere", "/etc/passwd"]),
        cmd=st.sampled_from([(), (), ("cat",), ("sleep", "999"), ("nowhere",)]),
        ttl=st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3]),
        env=st.just({NAME: INITIAL}),
        limits=st.just(ResourceLimits(vcpus=1, memory_mib=64)),
    )


PROCESSES = st.builds(stories.process, stories.IDS, COMMANDS, stories.NEEDS)
STOPS = st.builds(stories.stop, stories.IDS, st.sampled_from([0.0, 0.05, 0.3]))
PAUSES = st.one_of(
    st.integers(0, 100).map(stories.pause),
    st.sampled_from([0.001, 0.01, 0.05]).map(stories.wait),
    st.just(Happening("all comes to rest", lambda story: story.come_to_rest())),
)
KILLS = st.just(Happening("the agent is killed and started", lambda story: story.kill_agent()))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories") / "rootfs.squashfs"
    build(path)
    return path


@pytest.mark.timeout(60 + 10 * STORIES)
def test_any_story_ends_with_everything_in_its_place(
    technique: str, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(life, "_BETWEEN_RECORDS", 0.01)  # or every rest would take a second,
    monkeypatch.setattr(manager, "_OPENING_PATIENCE", 0.2)  # or ten, where the agent ended before it was asked,
    monkeypatch.setattr(manager, "_SWEEPING_PATIENCE", 0.2)  # or sixty
    kinds = [
        (6, specs(image).map(stories.creation)),
        (8, PROCESSES),
        (1, STOPS),
        (2, stories.REMOVALS),
        (1, stories.INIT_DEATHS),
        (2, stories.CANCELLATIONS),
        (8, PAUSES),
        (1, stories.RESUMPTIONS),
        (1, KILLS),
    ]

    # Not shrunk: what depends on who is faster does not fail again in the same way.
    @settings(deadline=None, max_examples=STORIES, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(happenings=stories.mixtures(kinds, longest=40))
    def told(happenings: Happenings) -> None:
        tell_one(technique, happenings)
        assert caplog.messages == []  # of exceptions that nobody foresaw

    logging.disable(logging.WARNING)
    try:
        told()
    finally:
        logging.disable(logging.NOTSET)


def tell_one(runtime: str, happenings: Happenings) -> None:
    """A story, after which nothing is left: neither on the machine nor in this process."""
    gc.collect()
    before, threads = descriptors(), drivers_threads()
    children = psutil.Process().children()  # of other tests
    directory = Path(tempfile.mkdtemp())
    try:
        trio.run(tell, runtime, happenings, directory)
    finally:
        shutil.rmtree(directory)
    gc.collect()  # what an operation has open that was abandoned
    assert descriptors() - before == set()
    assert [child for child in psutil.Process().children() if child not in children] == []
    assert drivers_threads() <= threads


def descriptors() -> set[tuple[str, str]]:
    """Of this process: their numbers, and what they are of."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the directory itself
            found.add((path.name, str(path.readlink())))
    return found


def drivers_threads() -> set[threading.Thread]:
    """Of all drivers: another test may have one that hangs, as some have."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("sandboxes")}


async def tell(runtime: str, happenings: Happenings, directory: Path) -> None:
    build(directory / "rootfs")
    world = OciWorld(OciDriver(directory / "data", runtime), str(directory / "rootfs"))
    try:
        async with trio.open_nursery() as nursery:
            story = OciStory(Records(directory / "records"), nursery, world)
            await stories.tell(story, happenings)
        assert world.leftovers() == []
    finally:
        with trio.CancelScope(shield=True):
            for sandbox_id in await world.driver.existing():
                await world.driver.destroy(sandbox_id)
            await world.driver.close()
