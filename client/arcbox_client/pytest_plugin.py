"""The pytest plugin: fixtures for harnesses that test against an agent.

`arcbox_agent` is a real agent on a temporary Unix socket, `arcbox_client` a client of it, `arcbox_memory_pair` a client
and a fake agent in memory. With `--arcbox-connect ADDRESS`, the first two use an agent that runs elsewhere. Async
fixtures need pytest-trio.

pytest imports this module at every start, in projects that do not use it too: nothing heavy is imported here.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator, Sequence

    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent
    from arcbox_client.testing import FakeAgent


_FAILED = pytest.StashKey[bool]()
_LOG_SECTION = "log of arcbox_agent, teardown included"  # pytest shows what has "teardown" in its name with the failure


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --arcbox-connect."""
    parser.getgroup("arcbox").addoption(
        "--arcbox-connect",
        metavar="ADDRESS",
        help="use the agent at vsock:CID:PORT, unix:PATH or unix:PATH?port=N; default: start one for each test",
    )


@pytest.fixture
def arcbox_agent_settings() -> str:
    """The settings of `arcbox_agent`, TOML. Override it to have others; these keep its hands off the machine.

    $DIRECTORY in it stands for a directory that is removed with the agent.
    """
    settings: str = import_module("arcbox_client._agent_process").SETTINGS
    return settings


@pytest.fixture
def arcbox_agent_command() -> Sequence[str]:
    """The program that `arcbox_agent` runs. Override it to run it under another one, or another build of it."""
    command: Sequence[str] = import_module("arcbox_client._agent_process").COMMAND
    return command


@pytest.fixture
def arcbox_agent(
    request: pytest.FixtureRequest, arcbox_agent_settings: str, arcbox_agent_command: Sequence[str]
) -> Iterator[RunningAgent]:
    """An agent that serves, with `.address`, `.pid` and `.log`. Its log is shown with a test that fails."""
    processes = import_module("arcbox_client._agent_process")
    address = request.config.getoption("--arcbox-connect")
    if address:
        yield processes.RunningAgent(address)
        return
    # Not tmp_path: the path of a socket has at most 107 bytes, and test names are long.
    with (
        tempfile.TemporaryDirectory(prefix="arcbox-") as directory,
        processes.running_agent(Path(directory), settings=arcbox_agent_settings, command=arcbox_agent_command) as agent,
    ):
        yield agent


@pytest.fixture
async def arcbox_client(arcbox_agent: RunningAgent) -> AsyncIterator[AgentClient]:
    """A client of `arcbox_agent`."""
    async with import_module("arcbox_client.client").connect(arcbox_agent.address) as client:
        yield client


@pytest.fixture
async def arcbox_memory_pair() -> AsyncIterator[tuple[AgentClient, FakeAgent]]:
    """A client, and the fake agent that it is connected to in memory. See `arcbox_client.testing`."""
    async with import_module("arcbox_client.testing").memory_pair() as pair:
        yield pair


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the agent's log with a test that failed: once the agent has ended, and has written all of it."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    agent = getattr(item, "funcargs", {}).get("arcbox_agent")
    if report.when == "teardown" and item.stash[_FAILED] and agent is not None and agent.log:
        report.sections.append((_LOG_SECTION, agent.log))
    return report
