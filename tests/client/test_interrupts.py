"""Ctrl-C ends `arcboxctl` with 130 and without a word, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arcbox_client._agent_process import RunningAgent

AT = """
import os, signal, sys

def press(event, _arguments, left=[{count}]):
    if event == {event!r}:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

from arcbox_client.cli import main
sys.addaudithook(press)
sys.argv = ["arcboxctl", *{arguments!r}]
main()
"""
"""Presses Ctrl-C the moment that arcboxctl does something for the nth time. See Python's table of audit events."""


def interrupted(agent: RunningAgent, event: str, count: int, *arguments: str) -> tuple[int, bytes]:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", AT.format(event=event, count=count, arguments=arguments)],
        env={**os.environ, "ARCBOX_CONNECT": agent.address},
        capture_output=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("count", [1, 20, 120, 250])
def test_while_its_modules_are_loaded(arcbox_agent: RunningAgent, count: int) -> None:
    assert interrupted(arcbox_agent, "import", count, "ping", "--count", "0") == (130, b"")


@pytest.mark.parametrize("arguments", [["ping", "--count", "0"], ["sandbox", "events"]])
@pytest.mark.parametrize("event", ["socket.__new__", "socket.connect"])
def test_while_it_connects(arcbox_agent: RunningAgent, event: str, arguments: list[str]) -> None:
    assert interrupted(arcbox_agent, event, 1, *arguments) == (130, b"")


def test_one_that_is_ignored_stays_so(arcbox_agent: RunningAgent) -> None:
    ignoring = f"trap '' INT; exec {sys.executable} -m arcbox_client.cli ping --count 2 --interval 0.01 >&2"
    with subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", ignoring], env={**os.environ, "ARCBOX_CONNECT": arcbox_agent.address}, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"pong")
        process.send_signal(signal.SIGINT)
        assert b"median" in process.stderr.read()
    assert process.returncode == 0
