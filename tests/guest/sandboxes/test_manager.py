"""Sandboxes come, get ready, are found, and go."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import ConflictError, GuestError, InvalidArgumentError, NotFoundError, UnavailableError
from arcbox_guest.sandboxes.events import EventHub
from arcbox_guest.sandboxes.manager import Defaults, SandboxManager
from arcbox_guest.sandboxes.model import Action, ResourceLimits, Spec, State, Statistics
from arcbox_guest.sandboxes.testing import BROKEN, ROOTFS, FakeDriver

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from arcbox_guest.sandboxes.records import Records
    from tests.guest.sandboxes.conftest import FakeAgent


async def test_create_answers_at_once_and_events_tell_how_it_goes_on(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["create"] = created = trio.Event()
    with agent.manager.subscribe("web") as events:
        sandbox = await agent.manager.create(Spec(id="web"))
        assert (sandbox.id, sandbox.state) == ("web", State.STARTING)
        await wait_all_tasks_blocked()
        assert agent.state("web") == "starting"
        created.set()
        assert [(await anext(events)).action for _ in range(2)] == [Action.CREATED, Action.READY]
    assert agent.state("web") == "ready"


async def test_a_sandbox_without_an_id_gets_a_uuid(autojump_clock: MockClock, agent: FakeAgent) -> None:
    first, second = [await agent.manager.create(Spec(id="")) for _ in range(2)]
    assert str(uuid.UUID(first.id)) == first.id
    assert first.id != second.id


@pytest.mark.parametrize("good", ["a", "7", "a" * 64, "A_b.c-9"])
async def test_ids_that_are_fine(autojump_clock: MockClock, agent: FakeAgent, good: str) -> None:
    assert (await agent.manager.create(Spec(id=good))).id == good


@pytest.mark.parametrize("bad", ["a" * 65, "-a", ".a", "_a", "a/b", "..", "a b", "a\n", "ä", "٣"])
async def test_ids_that_are_refused(autojump_clock: MockClock, agent: FakeAgent, bad: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no sandbox id: 1 to 64 letters"):
        await agent.manager.create(Spec(id=bad))
    assert agent.manager.list() == []


async def test_an_id_is_taken_until_its_sandbox_is_removed(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.stop("web")
    with pytest.raises(ConflictError, match="web exists already"):
        await agent.manager.create(Spec(id="web"))
    await agent.manager.remove("web", force=False)
    await agent.create(Spec(id="web"))
    assert agent.state("web") == "ready"


async def test_what_was_not_asked_for_is_filled_in(autojump_clock: MockClock, agent: FakeAgent) -> None:
    plain = await agent.manager.create(Spec(id="plain"))
    asked = ResourceLimits(vcpus=8, memory_mib=4096)
    large = await agent.manager.create(Spec(id="large", rootfs=BROKEN, limits=asked))
    assert (plain.spec.rootfs, plain.spec.limits) == (ROOTFS, ResourceLimits(vcpus=1, memory_mib=512))
    assert (large.spec.rootfs, large.spec.limits) == (BROKEN, asked)
    await wait_all_tasks_blocked()
    assert agent.driver.sandboxes["plain"].spec == plain.spec


async def test_without_any_root_file_system_the_error_names_both_ways_to_give_one(
    autojump_clock: MockClock, records: Records
) -> None:
    manager = SandboxManager(FakeDriver(), records, EventHub(), Defaults())
    with pytest.raises(InvalidArgumentError, match=r"in rootfs.*setting sandbox\.rootfs"):
        await manager.create(Spec(id="web"))


async def test_a_sandbox_that_can_not_be_created_has_failed_and_says_why(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", rootfs=BROKEN))
    sandbox = agent.manager.get("web")
    assert (sandbox.state, sandbox.error) == (State.FAILED, "the root file system /broken can't be mounted")
    assert agent.witness.told[-1] == ("web", Action.FAILED, {"error": "the root file system /broken can't be mounted"})
    assert agent.driver.sandboxes == {}


async def test_an_error_that_the_driver_did_not_foresee_fails_its_sandbox_only(
    autojump_clock: MockClock, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.driver.faults["create"] = ExceptionGroup("several", [RuntimeError("bug")])
    await agent.create(Spec(id="web"))
    del agent.driver.faults["create"]
    await agent.create(Spec(id="db"))
    assert (
        agent.manager.get("web").error == "sandbox web could not be created: internal error; the agent's log has more"
    )
    assert agent.state("db") == "ready"
    assert any(record.exc_info for record in caplog.records)


async def test_a_driver_that_hangs_in_create_fails_that_sandbox_after_a_minute_and_holds_up_nobody(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["create"] = trio.Event()
    await agent.create(Spec(id="stuck"))
    del agent.driver.faults["create"]
    await agent.create(Spec(id="web"))
    assert {sandbox.id: sandbox.state for sandbox in agent.manager.list()} == {"stuck": "starting", "web": "ready"}
    await trio.sleep(61)
    assert agent.manager.get("stuck").error == "sandbox stuck could not be created in 60 seconds"
    assert list(agent.driver.sandboxes) == ["web"]


async def test_a_caller_that_goes_away_does_not_take_its_sandbox_with_it(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    with trio.CancelScope() as peer:
        await agent.manager.create(Spec(id="web"))
        peer.cancel()
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert agent.state("web") == "ready"


async def test_times_are_those_of_the_clock(autojump_clock: MockClock, agent: FakeAgent) -> None:
    agent.driver.faults["create"] = created = trio.Event()
    await agent.create(Spec(id="web"))
    await trio.sleep(2.5)
    created.set()
    await wait_all_tasks_blocked()
    sandbox = agent.manager.get("web")
    assert (sandbox.created_at, sandbox.ready_at, sandbox.last_exited_at) == (1_767_225_600.0, 1_767_225_602.5, 0.0)


async def test_list_filters_by_state_and_by_all_labels_the_oldest_first(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    for number, labels in enumerate(({"a": "1", "b": "2"}, {"a": "1"}, {"a": "2", "b": "2"})):
        await agent.create(Spec(id=f"s{number}", labels=labels))
        await trio.sleep(1)
    await agent.manager.stop("s1")

    def ids(state: State | None = None, labels: dict[str, str] | None = None) -> list[str]:
        return [sandbox.id for sandbox in agent.manager.list(state, labels)]

    assert ids() == ["s0", "s1", "s2"]
    assert ids(State.READY) == ["s0", "s2"]
    assert ids(labels={"a": "1"}) == ["s0", "s1"]
    assert ids(State.READY, {"a": "1"}) == ["s0"]
    assert ids(labels={"a": "2", "b": "2"}) == ["s2"]
    assert ids(labels={"c": ""}) == []
    assert ids(State.FAILED) == []


async def test_what_nobody_created_is_not_found(autojump_clock: MockClock, agent: FakeAgent) -> None:
    with pytest.raises(NotFoundError, match="there is no sandbox 'web'"):
        agent.manager.get("web")
    for attempt in (agent.manager.stop("web"), agent.manager.remove("web", force=False)):
        with pytest.raises(NotFoundError):
            await attempt
    await agent.manager.remove("web", force=True)  # it is as it shall be
    with pytest.raises(NotFoundError):
        await agent.manager.statistics("web")


async def test_statistics_are_the_drivers(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    used = await agent.manager.statistics("web")
    assert used == Statistics(cpu_seconds=0.25, memory_bytes=700_000, processes=1)
    agent.driver.faults["statistics"] = trio.Event()
    with pytest.raises(GuestError, match="what sandbox web uses could not be found out in 5 seconds"):
        await agent.manager.statistics("web")
    await agent.manager.stop("web")
    with pytest.raises(ConflictError, match="web is stopped"):
        await agent.manager.statistics("web")


async def test_a_sandbox_is_removed_by_force_when_its_time_to_live_is_over(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="short", ttl=10, cmd=("sleep", "1000")))
    await agent.create(Spec(id="long"))
    await trio.sleep(9.9)
    assert agent.state("short") == "running"
    await trio.sleep(0.2)
    assert [sandbox.id for sandbox in agent.manager.list()] == ["long"]
    assert agent.witness.of("short")[-2:] == ["stopping", "removed"]
    assert list(agent.driver.sandboxes) == ["long"]


async def test_time_to_live_counts_from_the_creation_however_long_that_takes(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["create"] = trio.Event()
    await agent.create(Spec(id="web", ttl=10))
    await trio.sleep(10.1)
    assert agent.manager.list() == []
    assert agent.driver.sandboxes == {}


async def test_the_record_on_disk_follows_the_sandbox_and_goes_with_it(
    autojump_clock: MockClock, agent: FakeAgent, tmp_path: Path
) -> None:
    path = tmp_path / "records" / "web.json"
    await agent.create(Spec(id="web"))
    assert json.loads(path.read_text())["sandbox"]["state"] == "ready"
    await agent.manager.stop("web")
    await wait_all_tasks_blocked()
    assert json.loads(path.read_text())["sandbox"]["state"] == "stopped"
    await agent.manager.remove("web", force=False)
    assert list((tmp_path / "records").iterdir()) == []


async def test_requests_wait_for_a_service_that_is_just_starting(
    autojump_clock: MockClock, records: Records, nursery: trio.Nursery
) -> None:
    manager = SandboxManager(FakeDriver(), records, EventHub(), Defaults(rootfs=ROOTFS))

    async def start_late() -> None:
        await trio.sleep(3)
        await manager.run()

    nursery.start_soon(start_late)
    with pytest.raises(UnavailableError, match="try again in a moment"):
        manager.get("web")
    assert (await manager.create(Spec(id="web"))).state == State.STARTING
    nursery.cancel_scope.cancel()


async def test_requests_that_wait_for_a_service_that_ends_are_refused_at_once(
    autojump_clock: MockClock, records: Records
) -> None:
    driver = FakeDriver(faults={"existing": trio.Event()})
    manager = SandboxManager(driver, records, EventHub(), Defaults(rootfs=ROOTFS))

    async def create() -> None:
        with pytest.raises(UnavailableError, match="the agent is ending"):
            await manager.create(Spec(id="web"))

    begun = trio.current_time()
    async with trio.open_nursery() as waiting, trio.open_nursery() as service:
        service.start_soon(manager.run)
        await wait_all_tasks_blocked()
        waiting.start_soon(create)
        await wait_all_tasks_blocked()
        service.cancel_scope.cancel()
    assert trio.current_time() == begun


async def test_requests_to_a_service_that_does_not_run_are_refused_after_a_while(
    autojump_clock: MockClock, records: Records
) -> None:
    manager = SandboxManager(FakeDriver(), records, EventHub(), Defaults(rootfs=ROOTFS))
    with pytest.raises(UnavailableError, match="sandboxes are not available"):
        await manager.create(Spec(id="web"))
    with pytest.raises(UnavailableError, match="sandboxes are not available"):
        await manager.stop("web")
