"""Whatever happens, in whatever order: states, events, records and the driver's world agree in the end."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import ExecSpec, Sandbox, Spec, State
from arcbox_guest.sandboxes.records import Records
from arcbox_guest.sandboxes.testing import BROKEN, ROOTFS, FakeDriver
from arcbox_guest.sandboxes.times import Times
from tests.guest.sandboxes import stories
from tests.guest.sandboxes.stories import DriverBug, Happening, Happenings, Listener, Story

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EPOCH_NS: Final = 1_767_225_600_000_000_000


async def inline(function: Callable[..., object], *args: object) -> None:
    await trio.lowlevel.checkpoint()
    function(*args)
    await trio.lowlevel.checkpoint()


def now_ns() -> int:
    return EPOCH_NS + round(trio.current_time() * 1e9)


@define(eq=False)
class FakeStory(Story):
    """With a driver in memory, which can fail and hang."""

    driver: FakeDriver = Factory(FakeDriver)
    hangs: list[trio.Event] = Factory(list)

    def make_manager(self, listener: Listener) -> SandboxManager:
        return SandboxManager(
            self.driver, self.records, listener, Defaults(rootfs=ROOTFS), Times(now_ns, trio.current_time)
        )

    async def existing(self) -> list[str]:
        return list(self.driver.sandboxes)

    async def come_to_rest(self) -> None:
        self.heal()
        await trio.sleep(1000)
        await wait_all_tasks_blocked()
        await self.check_at_rest()

    async def check_driver(self, known: Mapping[str, Sandbox]) -> None:
        up = {sandbox_id for sandbox_id, sandbox in self.driver.sandboxes.items() if sandbox.up}
        live = {sandbox.id for sandbox in known.values() if sandbox.state in states.LIVE}
        assert live <= up
        assert all(known[sandbox_id].state is State.FAILED for sandbox_id in up - live)  # what could not be ended
        assert self.driver.sandboxes.keys() <= known.keys()
        running = Counter(client.sandbox_id for client in self.clients if client.runs)
        for sandbox_id, sandbox in self.driver.sandboxes.items():
            mains = [process for process in sandbox.processes if process.exit_code is None]
            initial = sum(process.command.argv == known[sandbox_id].spec.cmd for process in mains)
            assert len(mains) - initial == running[sandbox_id]
            if known[sandbox_id].state in states.LIVE:
                assert (known[sandbox_id].state is State.RUNNING) == bool(mains)

    def set_fault(self, method: str, fault: Exception | trio.Event) -> None:
        """Have a method of the driver fail or hang. What hangs already goes on doing so."""
        self.driver.faults[method] = fault
        if isinstance(fault, trio.Event):
            self.hangs.append(fault)

    def heal(self) -> None:
        """Let the driver fail and hang no more."""
        self.driver.faults.clear()
        for hang in self.hangs:
            hang.set()

    def end_process(self, sandbox_id: str, code: int) -> None:
        """Have the oldest process of a sandbox exit."""
        sandbox = self.driver.sandboxes.get(sandbox_id)
        if sandbox is not None and sandbox.processes:
            sandbox.processes[0].exit(code)

    def kill_init(self, sandbox_id: str) -> None:
        if sandbox_id in self.driver.sandboxes:
            self.driver.sandboxes[sandbox_id].lose_init("its init was killed")


SPECS = st.builds(
    Spec,
    id=stories.IDS,
    rootfs=st.sampled_from(["", "", "", BROKEN]),
    cmd=st.sampled_from([(), (), ("cat",), ("sleep", "999")]),
    ttl=st.sampled_from([0.0, 0.0, 3.0, 300.0]),
)
COMMANDS = st.builds(
    ExecSpec,
    argv=st.sampled_from(stories.ARGVS),
    timeout=st.sampled_from([0.0, 0.0, 2.0]),
    user=st.sampled_from(["", "", "", "nemo"]),
)
METHODS = st.sampled_from(["create", "process", "start_detached", "terminate", "idle", "ended", "stop", "destroy"])
FAULTS: Final[Mapping[str, Callable[[], Exception | trio.Event]]] = {
    "hangs": trio.Event,
    "refuses": lambda: GuestError("no"),
    "has a bug": DriverBug,
}


def exit_of(sandbox_id: str, code: int) -> Happening:
    return Happening(f"a process of {sandbox_id} exits with {code}", lambda story: story.end_process(sandbox_id, code))


def fault_of(method: str, fault: str) -> Happening:
    return Happening(f"{method} {fault}", lambda story: story.set_fault(method, FAULTS[fault]()))


CREATIONS = SPECS.map(stories.creation)
PROCESSES = st.builds(stories.process, stories.IDS, COMMANDS, stories.NEEDS)
STOPS = st.builds(stories.stop, stories.IDS, st.sampled_from([0.0, 1.0, 5.0, 100.0]))
PAUSES = st.one_of(
    st.integers(0, 7).map(stories.pause),
    st.just(Happening("all settles", lambda _: wait_all_tasks_blocked())),
    st.sampled_from([0.5, 4.0, 70.0]).map(stories.wait),
)
EXITS = st.builds(exit_of, stories.IDS, st.integers(0, 255))
FAULTY = st.builds(fault_of, METHODS, st.sampled_from(sorted(FAULTS)))
HEALINGS = st.just(Happening("the driver is well again", lambda story: story.heal()))
RESTARTS = st.just(Happening("the agent is killed and started", lambda story: story.restart()))
STORIES = stories.mixtures(
    [
        (6, CREATIONS),
        (5, PROCESSES),
        (2, STOPS),
        (2, stories.REMOVALS),
        (1, EXITS),
        (1, stories.INIT_DEATHS),
        (2, FAULTY),
        (2, stories.CANCELLATIONS),
        (6, PAUSES),
        (1, HEALINGS),
        (1, RESTARTS),
        (1, stories.RESUMPTIONS),
    ],
    longest=40,
)


async def tell(happenings: Happenings, directory: Path) -> None:
    async with trio.open_nursery() as nursery:
        story = FakeStory(Records(directory, run_sync=inline), nursery)
        await stories.tell(story, happenings)
        assert story.driver.sandboxes == {}


@settings(deadline=None, max_examples=300)
@given(happenings=STORIES)
def test_any_story_ends_with_everything_in_its_place(happenings: Happenings) -> None:
    directory = Path(tempfile.mkdtemp())
    logging.disable()
    try:
        trio.run(tell, happenings, directory, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(directory)
