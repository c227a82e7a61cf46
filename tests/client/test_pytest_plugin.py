"""The pytest plugin, as a harness uses it: pytest in a process of its own, in a project of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_client._agent_process import SETTINGS, AgentStartError, running_agent

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))}
    return subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=50, check=False
    )


def run_harness(directory: Path, test: str, *arguments: str) -> str:
    """Run pytest on a file with these lines; what it printed."""
    (directory / "test_harness.py").write_text(textwrap.dedent(test))
    options = ["-p", "no:cacheprovider", "-o", "trio_mode=true", "-rA", "-W", "error"]
    result = run_python("-m", "pytest", *options, *arguments, cwd=directory)
    return result.stdout + result.stderr


PING = """
    async def test_ping(arcbox_client, arcbox_agent):
        assert (await arcbox_client.ping()).message == "pong"
        print("agent at", arcbox_agent.address)
"""


async def test_the_client_fixture_talks_to_a_real_agent(arcbox_client: AgentClient) -> None:
    assert (await arcbox_client.ping("hello")).message == "pong: hello"


def test_the_agent_fixture_has_an_address_and_a_pid(arcbox_agent: RunningAgent) -> None:
    assert Path(arcbox_agent.address.removeprefix("unix:")).is_socket()
    assert Path(f"/proc/{arcbox_agent.pid}/cmdline").read_bytes().split(b"\0")[3:5] == [b"arcbox_agent", b"serve"]


def test_a_harness_gets_an_agent_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    output = run_harness(tmp_path, PING)
    assert "1 passed" in output
    address = output.partition("agent at unix:")[2].split()[0]
    assert not Path(address).parent.exists()


def test_a_package_named_agent_in_the_harness_does_not_get_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("raise SystemExit('this is the harness')")
    assert "1 passed" in run_harness(tmp_path, PING)


def test_the_log_of_the_agent_is_shown_with_a_test_that_fails_and_not_with_others(tmp_path: Path) -> None:
    assert "log of arcbox_agent" not in run_harness(tmp_path, PING)
    output = run_harness(
        tmp_path,
        """
        def test_fails(arcbox_agent):
            raise AssertionError("on purpose")
        """,
    )
    assert "1 failed" in output
    assert "listening" in output.partition("log of arcbox_agent")[2]


def test_the_log_is_shown_too_when_another_fixture_fails_after_the_test(tmp_path: Path) -> None:
    output = run_harness(
        tmp_path,
        """
        import pytest

        @pytest.fixture
        def breaks():
            yield
            raise RuntimeError("on purpose")

        def test_passes(breaks, arcbox_agent):
            pass
        """,
    )
    assert "1 passed, 1 error" in output
    assert "listening" in output.partition("log of arcbox_agent")[2]


def test_an_agent_that_runs_elsewhere_is_used_in_place_of_one_for_each_test(
    tmp_path: Path, arcbox_agent: RunningAgent
) -> None:
    output = run_harness(tmp_path, PING, "--arcbox-connect", arcbox_agent.address)
    assert "1 passed" in output
    assert f"agent at {arcbox_agent.address}\n" in output


def test_the_memory_fixture_is_a_client_and_a_fake_agent(tmp_path: Path) -> None:
    output = run_harness(
        tmp_path,
        """
        import trio
        from arcbox_protocol import arcbox_v1

        async def test_ping(arcbox_memory_pair):
            client, agent = arcbox_memory_pair
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.ping, "x")
                request = await agent.receive()
                assert request.message.message == "x"
                await agent.reply(request, arcbox_v1.AgentPingResponse(message="pong"))
        """,
    )
    assert "1 passed" in output


def test_settings_and_command_of_the_agent_can_be_overridden(tmp_path: Path) -> None:
    output = run_harness(
        tmp_path,
        """
        from pathlib import Path

        import pytest
        from arcbox_client import AgentError

        @pytest.fixture
        def arcbox_agent_settings(arcbox_agent_settings):
            return arcbox_agent_settings + "limits.max_frame = 1000"

        @pytest.fixture
        def arcbox_agent_command(arcbox_agent_command):
            return ["env", "MARK=1", *arcbox_agent_command]

        async def test_it(arcbox_client, arcbox_agent):
            with pytest.raises(AgentError, match="413"):
                await arcbox_client.ping("x" * 1000)
            assert b"MARK=1" in Path(f"/proc/{arcbox_agent.pid}/environ").read_bytes().split(b"\\0")
        """,
    )
    assert "1 passed" in output


def test_the_plugin_loads_nothing_heavy(tmp_path: Path) -> None:
    check = (
        "import arcbox_client.pytest_plugin, sys;"
        "print({'trio', 'google.protobuf', 'attr', 'click', 'rich'} & set(sys.modules))"
    )
    assert run_python("-c", check, cwd=tmp_path).stdout == "set()\n"


def stand_in(directory: Path, *lines: str) -> list[str]:
    """The command of a stand-in for the agent."""
    program = directory / "stand_in.py"
    program.write_text("\n".join(["import os, signal, socket, sys, time", *lines]))
    return [sys.executable, str(program)]


READY = (
    "notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "notify.connect(os.environ['NOTIFY_SOCKET'])",
    "notify.send(b'STATUS=soon')",
    "notify.send(b'STATUS=now\\nREADY=1')",
)


def test_an_agent_that_ends_before_it_is_ready_is_an_error_with_its_log(directory: Path) -> None:
    command = stand_in(directory, "sys.exit('no such device')")
    with (
        pytest.raises(AgentStartError, match=r"the agent ended with 1; its log:\nno such device"),
        running_agent(directory, command=command),
    ):
        pytest.fail("it never was ready")


def test_settings_that_the_agent_refuses_are_an_error_that_says_so(directory: Path) -> None:
    with (
        pytest.raises(AgentStartError, match="no_such_key"),
        running_agent(directory, settings=f"{SETTINGS}no_such_key = 1"),
    ):
        pytest.fail("it never was ready")


def test_an_agent_is_ready_when_it_says_so_and_ends_on_sigterm(directory: Path) -> None:
    command = stand_in(
        directory,
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('stopped')))",
        *READY,
        "time.sleep(1000)",
    )
    with running_agent(directory, command=command) as agent:
        assert Path(f"/proc/{agent.pid}").exists()
    assert agent.log == "stopped\n"
    assert not Path(f"/proc/{agent.pid}").exists()


def test_an_agent_that_ignores_sigterm_is_killed_with_all_that_it_started(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcbox_client._agent_process._STOPPED_WITHIN", 0.1)
    command = stand_in(
        directory,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "child = os.fork()",
        "if child: print(child, flush=True)",
        *(f"if child: {line}" for line in READY),
        "time.sleep(1000)",
    )
    with running_agent(directory, command=command) as agent:
        child = int(agent.log)
        assert Path(f"/proc/{child}").exists()
        end = os.pidfd_open(child)
    assert not Path(f"/proc/{agent.pid}").exists()
    assert is_over(end)


def is_over(pidfd: int) -> bool:
    """Whether the process ends, within the time that a signal takes to be delivered."""
    with os.fdopen(pidfd) as readable:
        return bool(select.select([readable], [], [], 10)[0])


async def test_reads_of_real_files_come_whole_and_errors_with_their_errno(
    arcbox_client: AgentClient, tmp_path: Path
) -> None:
    data = os.urandom(20 * 1024 * 1024 + 7)
    (tmp_path / "large").write_bytes(data)
    assert await arcbox_client.mmap_read_file(str(tmp_path / "large")) == data
    assert await arcbox_client.mmap_read_file(str(tmp_path / "large"), offset=len(data) - 3) == data[-3:]
    with pytest.raises(OSError, match="No such file or directory") as caught:
        await arcbox_client.mmap_read_file(str(tmp_path / "none"))
    assert caught.value.errno == 2
