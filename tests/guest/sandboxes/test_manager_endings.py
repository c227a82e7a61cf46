"""Sandboxes are stopped and removed, gently or not, by one peer or several, with a driver that does as it likes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import ConflictError, GuestError, NotFoundError, TimedOutError
from arcbox_guest.sandboxes.model import Action, ExecSpec, Spec
from arcbox_guest.sandboxes.testing import BROKEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from tests.guest.sandboxes.conftest import FakeAgent

STUBBORN = ExecSpec(argv=("sh", "-c", "trap '' TERM; echo trapped; while :; do sleep 1000; done"))
SLEEP = ExecSpec(argv=("sleep", "1000"))


async def run(agent: FakeAgent, command: ExecSpec, exit_codes: list[int]) -> None:
    async with agent.manager.process("web", command) as process:
        exit_codes.append(await process.wait())


async def attempt(outcomes: list[object], call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
        outcomes.append("done")
    except GuestError as error:
        outcomes.append(type(error))


@pytest.mark.parametrize(("command", "seconds", "code"), [(SLEEP, 0, 143), (STUBBORN, 10, 137)])
async def test_stop_asks_first_and_kills_what_is_left_when_the_time_is_up(
    autojump_clock: MockClock, agent: FakeAgent, command: ExecSpec, seconds: int, code: int
) -> None:
    exit_codes: list[int] = []
    await agent.create(Spec(id="web"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, agent, command, exit_codes)
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        await agent.manager.stop("web", 10)
        assert trio.current_time() - begun == seconds
    assert exit_codes == [code]
    assert agent.witness.of("web") == ["created", "ready", "running", "stopping", "stopped"]
    assert not agent.driver.sandboxes["web"].up
    assert agent.manager.get("web").last_exit_code == code


async def test_stop_gives_thirty_seconds_when_nobody_says_how_many(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", cmd=STUBBORN.argv))
    begun = trio.current_time()
    await agent.manager.stop("web")
    assert trio.current_time() - begun == 30


async def test_stop_ends_daemons_that_were_left_behind_too(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", cmd=("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo left")))
    assert agent.state("web") == "ready"
    await agent.manager.stop("web", 10)
    assert agent.driver.sandboxes["web"].processes == []


async def test_all_who_stop_a_sandbox_get_its_end_and_the_most_impatient_decides(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", cmd=STUBBORN.argv))
    ends: list[float] = []

    async def stop(grace: float) -> None:
        await agent.manager.stop("web", grace)
        ends.append(trio.current_time())

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for grace in (20, 5, 60):
            nursery.start_soon(stop, grace)
    assert [end - begun for end in ends] == [5, 5, 5]
    assert agent.witness.of("web").count("stopping") == 1
    await agent.manager.stop("web")
    assert agent.witness.of("web")[-1] == "stopped"


async def test_a_stop_goes_on_when_its_peer_goes_away(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", cmd=STUBBORN.argv))
    with trio.move_on_after(1):
        await agent.manager.stop("web", 10)
    assert agent.state("web") == "stopping"
    await trio.sleep(10)
    assert agent.state("web") == "stopped"


async def test_a_sandbox_that_is_being_created_can_be_stopped_and_nothing_is_left_of_it(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["create"] = trio.Event()
    await agent.create(Spec(id="web"))
    await agent.manager.stop("web")
    assert agent.witness.of("web") == ["created", "stopping", "stopped"]
    assert agent.driver.sandboxes == {}


@pytest.mark.parametrize("rootfs", ["", BROKEN])
async def test_a_stop_in_the_moment_in_which_a_creation_succeeds_or_fails_comes_first(
    autojump_clock: MockClock, agent: FakeAgent, rootfs: str
) -> None:
    agent.driver.faults["create"] = created = trio.Event()
    await agent.create(Spec(id="web", rootfs=rootfs))
    created.set()
    await agent.manager.stop("web")
    assert agent.witness.of("web") == ["created", "stopping", "stopped"]
    assert agent.driver.sandboxes == {}


async def test_a_stop_in_the_same_moment_as_the_create_is_no_different(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.manager.create(Spec(id="web"))
    await agent.manager.stop("web")
    assert agent.witness.of("web") == ["created", "stopping", "stopped"]
    assert agent.driver.sandboxes == {}


async def test_what_has_failed_can_not_be_stopped_only_removed(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", rootfs=BROKEN))
    with pytest.raises(
        ConflictError, match=r"web has failed \(the root file system /broken can't be mounted\): it can't be"
    ):
        await agent.manager.stop("web")
    await agent.manager.remove("web", force=False)
    assert agent.witness.of("web") == ["created", "failed", "removed"]


async def test_a_running_sandbox_is_removed_by_force_only(autojump_clock: MockClock, agent: FakeAgent) -> None:
    exit_codes: list[int] = []
    await agent.create(Spec(id="web"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, agent, STUBBORN, exit_codes)
        await wait_all_tasks_blocked()
        with pytest.raises(ConflictError, match="web is running: stop it first, or remove it by force"):
            await agent.manager.remove("web", force=False)
        assert agent.state("web") == "running"
        await agent.manager.remove("web", force=True)
    assert exit_codes == [137]
    assert agent.witness.of("web") == ["created", "ready", "running", "stopping", "removed"]
    assert {action: why for _, action, why in agent.witness.told[-2:]} == {
        Action.STOPPING: {"reason": "removed"},
        Action.REMOVED: {"reason": "removed"},
    }
    assert agent.driver.sandboxes == {}
    with pytest.raises(NotFoundError):
        agent.manager.get("web")


async def test_what_a_process_left_behind_is_removed_by_force_only(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", cmd=("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo left")))
    with pytest.raises(ConflictError, match="web is ready, but processes that were left behind run in it"):
        await agent.manager.remove("web", force=False)
    assert agent.state("web") == "ready"
    await agent.manager.remove("web", force=True)
    assert agent.driver.sandboxes == {}


async def test_a_sandbox_whose_time_is_up_says_so(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", cmd=SLEEP.argv, ttl=5))
    await trio.sleep(6)
    assert agent.witness.told[-1] == ("web", Action.REMOVED, {"reason": "expired"})


@pytest.mark.parametrize("force", [False, True])
async def test_a_sandbox_that_is_being_created_can_be_removed(
    autojump_clock: MockClock, agent: FakeAgent, *, force: bool
) -> None:
    agent.driver.faults["create"] = trio.Event()
    await agent.create(Spec(id="web"))
    await agent.manager.remove("web", force=force)
    assert agent.witness.of("web") == ["created", "stopping", "removed"]
    assert agent.driver.sandboxes == {}


async def test_a_removal_waits_for_a_stop_that_is_under_way_unless_forced(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", cmd=STUBBORN.argv))
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        begun = trio.current_time()
        nursery.start_soon(attempt, outcomes, lambda: agent.manager.stop("web", 20))
        await wait_all_tasks_blocked()
        nursery.start_soon(attempt, outcomes, lambda: agent.manager.remove("web", force=False))
        await trio.sleep(5)
        assert agent.state("web") == "stopping"
        await agent.manager.remove("web", force=True)
        assert trio.current_time() - begun == 5
    assert outcomes == ["done", "done"]
    assert agent.witness.of("web")[-2:] == ["stopping", "removed"]


async def test_nothing_runs_in_a_sandbox_that_is_being_removed(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["destroy"] = destroyed = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, [], lambda: agent.manager.remove("web", force=False))
        await wait_all_tasks_blocked()
        with pytest.raises(ConflictError, match="web is stopping"):
            await run(agent, SLEEP, [])
        with pytest.raises(ConflictError, match="web exists already"):
            await agent.manager.create(Spec(id="web"))
        destroyed.set()


async def test_a_removal_goes_on_when_its_peer_goes_away(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["destroy"] = destroyed = trio.Event()
    with trio.move_on_after(1):
        await agent.manager.remove("web", force=False)
    destroyed.set()
    await wait_all_tasks_blocked()
    assert agent.manager.list() == []


async def test_a_removal_that_fails_says_so_to_all_who_wait_and_can_be_tried_again(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["destroy"] = GuestError("/web/merged is busy")
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(attempt, outcomes, lambda: agent.manager.remove("web", force=True))
    assert outcomes == [GuestError, GuestError]
    assert agent.manager.get("web").error == "/web/merged is busy"
    del agent.driver.faults["destroy"]
    await agent.manager.remove("web", force=False)
    assert agent.witness.of("web") == ["created", "ready", "stopping", "failed", "removed"]


async def test_a_stop_that_a_failing_removal_overtakes_fails_with_it(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", cmd=STUBBORN.argv))
    agent.driver.faults["destroy"] = GuestError("busy")
    outcomes: list[object] = []
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, outcomes, lambda: agent.manager.stop("web", 20))
            await wait_all_tasks_blocked()
            nursery.start_soon(attempt, outcomes, lambda: agent.manager.remove("web", force=False))
    assert outcomes == [GuestError, GuestError]
    assert agent.manager.get("web").error == "busy"


async def test_a_stop_in_the_moment_in_which_the_init_dies_comes_first(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.sandboxes["web"].lose_init("its init was killed")
    await agent.manager.stop("web")
    assert agent.witness.of("web") == ["created", "ready", "stopping", "stopped"]


async def test_a_stopped_sandbox_that_can_not_be_removed_stays_stopped(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.stop("web")
    agent.driver.faults["destroy"] = GuestError("busy")
    with pytest.raises(GuestError, match="busy"):
        await agent.manager.remove("web", force=False)
    assert agent.state("web") == "stopped"


async def test_a_driver_that_hangs_when_it_stops_a_sandbox_fails_it_after_a_minute(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await agent.create(Spec(id="db"))
    agent.driver.faults["stop"] = trio.Event()
    with pytest.raises(TimedOutError, match="sandbox web could not be stopped in 60 seconds"):
        await agent.manager.stop("web", 1)
    assert (agent.state("web"), agent.state("db")) == ("failed", "ready")
    del agent.driver.faults["stop"]
    await agent.manager.remove("web", force=False)


@pytest.mark.parametrize("method", ["terminate", "idle"])
async def test_processes_that_can_not_be_asked_to_end_are_killed(
    autojump_clock: MockClock, agent: FakeAgent, method: str
) -> None:
    for fault in (GuestError("no"), RuntimeError("bug"), trio.Event()):
        agent.driver.faults[method] = fault
        await agent.create(Spec(id="web", cmd=SLEEP.argv))
        await agent.manager.stop("web", 2)
        assert agent.state("web") == "stopped"
        assert agent.driver.sandboxes["web"].processes == []
        await agent.manager.remove("web", force=False)


async def test_a_time_to_live_that_ends_while_the_driver_fails_is_tried_again_until_the_sandbox_is_gone(
    autojump_clock: MockClock, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.driver.faults["destroy"] = GuestError("busy")
    await agent.create(Spec(id="web", ttl=5))
    await trio.sleep(6)
    assert agent.state("web") == "failed"
    assert "expired sandbox not removed" in [record.message for record in caplog.records]
    await trio.sleep(60)
    assert [record.message for record in caplog.records].count("expired sandbox not removed") == 2
    del agent.driver.faults["destroy"]
    await trio.sleep(60)
    assert agent.manager.list() == []
    assert agent.driver.sandboxes == {}


async def test_an_expired_sandbox_that_could_not_be_removed_can_be_by_hand(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["destroy"] = GuestError("busy")
    await agent.create(Spec(id="web", ttl=5))
    await trio.sleep(6)
    del agent.driver.faults["destroy"]
    await agent.manager.remove("web", force=False)
    assert agent.manager.list() == []


async def test_all_sandboxes_are_stopped_at_once_before_the_power_goes(
    autojump_clock: MockClock, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    await agent.create(Spec(id="failed", rootfs=BROKEN))
    for name in ("stubborn", "other"):
        await agent.create(Spec(id=name, cmd=STUBBORN.argv))
    await agent.create(Spec(id="idle"))
    begun = trio.current_time()
    caplog.clear()
    await agent.manager.stop_all()
    assert caplog.records == []
    assert trio.current_time() - begun == 5
    assert {sandbox.id: str(sandbox.state) for sandbox in agent.manager.list()} == {
        "failed": "failed",
        "stubborn": "stopped",
        "other": "stopped",
        "idle": "stopped",
    }


async def test_peers_that_wait_for_an_end_are_told_when_the_agent_ends_first(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["stop"] = agent.driver.faults["destroy"] = trio.Event()
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, outcomes, lambda: agent.manager.stop("web", 1))
        nursery.start_soon(attempt, outcomes, lambda: agent.manager.remove("web", force=True))
        await wait_all_tasks_blocked()
        await agent.kill()
    assert [kind.__name__ for kind in outcomes if isinstance(kind, type)] == ["UnavailableError"] * 2
