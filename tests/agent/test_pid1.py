"""PID 1, in a process namespace of its own: there its power off ends the namespace, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from arcbox_agent.__main__ import _is_init

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")

NAMESPACE = ("unshare", "--pid", "--mount", "--net", "--uts", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def pid1(tmp_path: Path, address: Path) -> Iterator[subprocess.Popen[str]]:
    """A namespace whose PID 1 we are; its standard error is the console."""
    settings = tmp_path / "agent.toml"
    settings.write_text(
        f'sandbox.data_dir = "{tmp_path}/sandboxes"\ndisk.trim_mounts = []\nclock.follow_host = false\n'
    )
    command = [*NAMESPACE, sys.executable, "-P", "-m", "arcbox_agent", "serve"]
    with subprocess.Popen(  # noqa: S603  our own program
        [*command, "--config", str(settings), "--listen", f"unix:{address}"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()  # and with it goes the namespace, and all that is in it


def only_child(pid: int) -> int:
    (child,) = psutil.Process(pid).children()
    return child.pid


def console_line(process: subprocess.Popen[str], part: str) -> str:
    """The next line on the console that has something in it."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if part in line:
            return line
    raise AssertionError(f"no {part!r} in {seen}")


def test_pid_1_starts_its_agent_again_says_why_and_ends_with_everything(pid1: subprocess.Popen[str]) -> None:
    console_line(pid1, "listening")
    init = only_child(pid1.pid)
    os.kill(only_child(init), signal.SIGKILL)
    assert "the agent was killed by SIGKILL; it is started again in 0.5 s" in console_line(pid1, "agent was killed")
    console_line(pid1, "listening")

    os.kill(init, signal.SIGTERM)
    console_line(pid1, "powering off")
    console_line(pid1, "stopping")  # the agent, in order
    # reboot(2) in a pid namespace ends its init with a signal: pid_namespaces(7).
    assert pid1.wait() != 0


def test_orphans_are_reaped(pid1: subprocess.Popen[str]) -> None:
    console_line(pid1, "listening")
    script = "orphan=$(sleep 0.05 >&- & echo $!); while [ -e /proc/$orphan ]; do sleep 0.01; done"
    enter = ["nsenter", "--pid", "--mount", "--target", str(only_child(pid1.pid))]
    subprocess.run([*enter, "sh", "-c", script], check=True, timeout=30)  # noqa: S603  see above


@pytest.mark.parametrize("arguments", [[], ["serve"], ["serve", "--listen", "vsock:1"], ["single"], ["splash"]])
def test_what_a_kernel_gives_its_init_makes_it_one(arguments: list[str]) -> None:
    assert _is_init(arguments)


@pytest.mark.parametrize("arguments", [["check"], ["--version"], ["config", "--json"], ["rootfs", "build", "x"]])
def test_a_command_of_a_container_is_no_init(arguments: list[str]) -> None:
    assert not _is_init(arguments)
