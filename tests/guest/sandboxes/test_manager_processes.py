"""What runs in sandboxes, and what that does to their state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import ConflictError, InvalidArgumentError, NotFoundError, UnavailableError
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.model import Action, ExecSpec, ResourceLimits, Spec, State, TerminalSize
from arcbox_guest.sandboxes.output_log import DEFAULT_LIMIT

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.guest.sandboxes.conftest import FakeAgent

SLEEP = ExecSpec(argv=("sleep", "1000"))


def script(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text)


async def exit_code(agent: FakeAgent, command: ExecSpec, needs: frozenset[State] = states.READY_OR_RUNNING) -> int:
    async with agent.manager.process("web", command, needs=needs) as process:
        return await process.wait()


async def test_a_sandbox_runs_while_anything_runs_and_is_ready_again_after(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", ExecSpec(argv=("cat",)), needs=states.READY) as first:
        assert agent.state("web") == "running"
        async with agent.manager.process("web", ExecSpec(argv=("cat",))) as second:
            await first.close_stdin()
            assert await first.wait() == 0
            assert agent.state("web") == "running"
            await second.close_stdin()
            assert await second.wait() == 0
            assert agent.state("web") == "ready"
    assert agent.witness.of("web") == ["created", "ready", "running", "idle"]


async def test_the_idle_event_and_the_record_have_the_exit_code_of_the_last_to_end(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await trio.sleep(3)
    assert await exit_code(agent, ExecSpec(argv=script("exit 7"))) == 7
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "7"})
    sandbox = agent.manager.get("web")
    assert (sandbox.last_exit_code, sandbox.last_exited_at) == (7, 1_767_225_603.0)


async def test_who_knows_that_a_process_has_ended_finds_the_sandbox_ready(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    for _ in range(50):
        async with agent.manager.process("web", ExecSpec(argv=("true",)), needs=states.READY) as process:
            await process.wait()
            assert agent.state("web") == "ready"


async def test_a_process_that_has_ended_keeps_nobody_out_while_its_output_is_still_read(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", ExecSpec(argv=("echo", "slowly")), needs=states.READY) as process:
        await wait_all_tasks_blocked()
        assert agent.state("web") == "ready"
        assert bytes(await process.stdout.receive()) == b"slowly\n"


async def test_run_wants_the_sandbox_to_itself_and_exec_does_not(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", SLEEP, needs=states.READY):
        with pytest.raises(ConflictError, match="web is running"):
            await exit_code(agent, ExecSpec(argv=("true",)), states.READY)
        assert await exit_code(agent, ExecSpec(argv=("true",))) == 0


async def test_of_two_runs_at_the_same_moment_one_is_refused(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    outcomes: list[object] = []

    async def run() -> None:
        try:
            outcomes.append(await exit_code(agent, ExecSpec(argv=("true",)), states.READY))
        except ConflictError as error:
            outcomes.append(type(error))

    agent.driver.faults["process"] = started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        started.set()
    assert outcomes == [ConflictError, 0]


async def test_nothing_runs_in_a_sandbox_that_is_not_there_not_ready_or_gone(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    with pytest.raises(NotFoundError):
        await exit_code(agent, SLEEP)
    agent.driver.faults["create"] = created = trio.Event()
    await agent.create(Spec(id="web"))
    with pytest.raises(ConflictError, match="web is starting: nothing can run in it before it is ready"):
        await exit_code(agent, SLEEP)
    created.set()
    await wait_all_tasks_blocked()
    await agent.manager.stop("web")
    with pytest.raises(ConflictError, match="web is stopped"):
        await exit_code(agent, SLEEP)


async def test_what_could_not_be_started_leaves_the_sandbox_ready(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    with pytest.raises(InvalidArgumentError, match="there is no user 'nemo'"):
        await exit_code(agent, ExecSpec(argv=("true",), user="nemo"))
    why = "there is no user 'nemo' in sandbox web"
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "126", "error": why})
    assert agent.state("web") == "ready"


async def test_leaving_early_kills_the_whole_tree(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", SLEEP):
        pass
    assert agent.driver.sandboxes["web"].processes == []
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "137"})


async def test_a_peer_that_goes_away_kills_its_process_and_no_other(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", SLEEP) as mine:
        with trio.move_on_after(5) as peer:
            await exit_code(agent, SLEEP)
        assert peer.cancelled_caught
        assert len(agent.driver.sandboxes["web"].processes) == 1
        assert agent.state("web") == "running"
        await mine.kill()
        assert await mine.wait() == 137
    assert agent.state("web") == "ready"


async def test_a_peer_that_goes_away_while_its_process_is_started_leaves_nothing(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["process"] = trio.Event()
    with trio.move_on_after(5):
        await exit_code(agent, SLEEP)
    assert agent.state("web") == "ready"
    assert agent.driver.sandboxes["web"].processes == []


@pytest.mark.parametrize(
    "argv", [("sleep", "1000"), script("trap '' TERM; echo trapped; while :; do sleep 1000; done")]
)
async def test_a_process_is_killed_when_its_time_is_up_even_if_nobody_waits_for_it(
    autojump_clock: MockClock, agent: FakeAgent, argv: tuple[str, ...]
) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", ExecSpec(argv=argv, timeout=2)) as process:
        await trio.sleep(1.9)
        assert agent.state("web") == "running"
        await trio.sleep(0.2)
        assert agent.state("web") == "ready"
        assert await process.wait() == 137


async def test_a_process_that_ends_in_time_is_not_killed(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    assert await exit_code(agent, ExecSpec(argv=script("exit 7"), timeout=1)) == 7
    await trio.sleep(5)
    assert agent.manager.get("web").last_exit_code == 7


async def test_input_and_the_size_of_the_terminal_reach_the_process(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    command = ExecSpec(argv=script("stty size; read line; stty size"), terminal=TerminalSize())
    async with agent.manager.process("web", command) as process:
        process.resize(TerminalSize(132, 50))
        await process.send_stdin(b"\n")
        assert await process.wait() == 0
        assert process.stderr is None
        assert bytes(await process.stdout.receive()) == b"24 80\r\n50 132\r\n"


async def test_the_initial_command_runs_as_soon_as_the_sandbox_is_ready_and_its_output_is_kept(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", cmd=script("echo out; echo err >&2")))
    assert agent.witness.of("web") == ["created", "ready", "running", "idle"]
    assert agent.state("web") == "ready"
    assert sorted(agent.output("web").splitlines()) == [b"err", b"out"]


async def test_nobody_gets_in_before_the_initial_command(autojump_clock: MockClock, agent: FakeAgent) -> None:
    with agent.manager.subscribe("web", Action.READY) as events:
        await agent.manager.create(Spec(id="web", cmd=("sleep", "1000")))
        await anext(events)
        with pytest.raises(ConflictError, match="web is running"):
            await exit_code(agent, SLEEP, states.READY)


@pytest.mark.parametrize(
    ("spec", "exit_code", "error"),
    [
        (Spec(id="web", cmd=("daemon",)), "127", "daemon: not found"),
        (Spec(id="web", cmd=("true",), working_dir="/a"), "126", "there is no directory /a in sandbox web"),
    ],
)
async def test_an_initial_command_that_can_not_be_started_says_so_in_its_output_its_event_and_its_sandbox(
    autojump_clock: MockClock, agent: FakeAgent, spec: Spec, exit_code: str, error: str
) -> None:
    await agent.create(spec)
    assert agent.state("web") == "ready"
    assert agent.output("web") == f"{error}\n".encode()
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": exit_code, "error": error})
    assert agent.manager.get("web").last_error == error


async def test_a_process_that_was_killed_tells_why(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", limits=ResourceLimits(memory_mib=64)))
    assert await exit_code(agent, ExecSpec(argv=SLEEP.argv, timeout=2)) == 137
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "137", "reason": "timeout"})
    assert agent.manager.get("web").last_error == "timeout: it was killed after 2 s"
    async with agent.manager.process("web", SLEEP) as process:
        agent.driver.sandboxes["web"].processes[0].run_out_of_memory()
        assert await process.wait() == 137
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "137", "reason": "oom"})
    assert agent.manager.get("web").last_error == "oom: the memory limit of the sandbox, 64 MiB, was reached"
    async with agent.manager.process("web", SLEEP) as process:
        agent.driver.sandboxes["web"].processes[0].die()
        assert await process.wait() == 137
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "137"})
    assert agent.manager.get("web").last_error == ""


async def test_an_initial_command_gets_no_input(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", cmd=("cat",)))
    assert agent.witness.told[-1] == ("web", Action.IDLE, {"exit_code": "0"})


async def test_an_initial_command_that_never_stops_writing_is_bounded_and_holds_up_nobody(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.manager.create(Spec(id="web", cmd=("yes",)))
    for _ in range(200):
        await trio.lowlevel.checkpoint()
    assert DEFAULT_LIMIT <= len(agent.output("web")) <= 2 * DEFAULT_LIMIT
    await agent.manager.remove("web", force=True)
    assert agent.driver.sandboxes == {}


async def test_what_a_daemon_of_the_initial_command_writes_is_still_kept(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", cmd=script("sleep 1000 & echo left; exit 3")))
    assert agent.state("web") == "ready"
    (process,) = agent.driver.sandboxes["web"].processes
    process.write(b"from the daemon\n")
    await wait_all_tasks_blocked()
    assert agent.output("web") == b"left\nfrom the daemon\n"


async def test_when_a_sandboxs_init_dies_it_has_failed_and_its_processes_end(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", SLEEP) as process:
        agent.driver.sandboxes["web"].lose_init("its init was killed by signal 9")
        assert await process.wait() == 137
        await wait_all_tasks_blocked()
    assert agent.witness.told[-1] == ("web", Action.FAILED, {"error": "its init was killed by signal 9"})
    assert agent.witness.of("web") in (
        ["created", "ready", "running", "failed"],
        ["created", "ready", "running", "idle", "failed"],  # which of the two ends is seen first is anybody's guess
    )
    assert agent.manager.get("web").error == "its init was killed by signal 9"
    assert ("stop", "web") in agent.driver.calls
    with pytest.raises(ConflictError, match=r"web has failed \(its init was killed by signal 9\)"):
        await exit_code(agent, SLEEP)


async def test_a_process_that_is_started_while_its_sandbox_ends_is_refused_or_killed(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["process"] = started = trio.Event()
    agent.driver.faults["terminate"] = trio.Event()

    async def run() -> None:
        with pytest.raises(UnavailableError, match="web ended while the process was started in it"):
            await exit_code(agent, SLEEP)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        nursery.start_soon(agent.manager.stop, "web", 10)
        await wait_all_tasks_blocked()
        started.set()
    assert agent.state("web") == "stopped"
    assert agent.driver.sandboxes["web"].processes == []


async def test_an_agent_that_ends_is_no_error_for_the_peers_whose_processes_still_run(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", SLEEP):
        await agent.kill()
    assert agent.driver.sandboxes["web"].processes == []
