"""arcboxctl, as a process of its own, against a real agent."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import pytest

from arcbox_client.cli import main
from arcbox_client.commands._output import human_duration, human_size
from arcbox_client.commands.machine import _trimmed_volumes, latency_summary
from arcbox_protocol import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client._agent_process import RunningAgent

SIZE_OF_SEVERAL_CHUNKS = 9 * 1024 * 1024 + 1


CTRL_C = b"\x03"


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def start(*arguments: str, stdout: int | IO[bytes] = subprocess.PIPE, **variables: str) -> subprocess.Popen[bytes]:
    """Start arcboxctl, with these variables in its environment besides those of this process."""
    return subprocess.Popen(  # noqa: S603  the command is our own
        [sys.executable, "-m", "arcbox_client.cli", *arguments],
        env={**os.environ, "ARCBOX_CONNECT": "", "COLUMNS": "100", **variables},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def arcboxctl(*arguments: str, address: str = "") -> Result:
    with start(*arguments, ARCBOX_CONNECT=address) as process:
        stdout, stderr = process.communicate(timeout=30)
    return Result(process.returncode, stdout.decode(), stderr.decode())


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_ping_shows_the_answer_the_time_and_the_agents_version(arcbox_agent: RunningAgent) -> None:
    result = arcboxctl("--connect", arcbox_agent.address, "ping", "hello")
    answer, milliseconds, unit, _, version = result.stdout.replace("pong: hello", "pong").split()
    assert (answer, unit, version) == ("pong", "ms", __version__)
    assert float(milliseconds) > 0
    assert (result.returncode, result.stderr) == (0, "")


def test_several_pings_end_with_a_summary(arcbox_agent: RunningAgent) -> None:
    result = arcboxctl("ping", "-c", "5", "-i", "0", address=arcbox_agent.address)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["pong"] * 5 + ["pings:", "min:", "avg:", "median:", "p99:", "max:"]


def test_ping_in_json_has_the_figures(arcbox_agent: RunningAgent) -> None:
    result = json.loads(
        arcboxctl("ping", "x", "--count", "3", "--interval", "0", "--json", address=arcbox_agent.address).stdout
    )
    latency = result["latency_ms"]
    assert (result["message"], result["version"], result["count"]) == ("pong: x", __version__, 3)
    assert 0 < latency["min"] <= latency["median"] <= latency["p99"] <= latency["max"]


def test_the_summary_of_a_hundred_samples() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert latency_summary(samples) == {"min": 1, "avg": 50.5, "median": 50.5, "p99": 99, "max": 100}


def test_the_summary_of_one_sample() -> None:
    assert set(latency_summary([7.0]).values()) == {7.0}


def test_info_shows_what_the_guest_is(arcbox_agent: RunningAgent) -> None:
    lines = arcboxctl("info", address=arcbox_agent.address).stdout.splitlines()
    facts = dict(line.split(": ", 1) for line in lines)
    assert facts["hostname"] == os.uname().nodename
    assert facts["kernel"] == os.uname().release
    assert facts["processors"] == str(os.cpu_count())


def test_info_in_json_has_numbers_as_numbers(arcbox_agent: RunningAgent) -> None:
    info = json.loads(arcboxctl("--json", "info", address=arcbox_agent.address).stdout)
    assert info["kernel_version"] == os.uname().release
    assert info["total_memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert len(info["load_average"]) == 3


def test_info_on_a_terminal_is_a_table(arcbox_agent: RunningAgent) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        with start("--connect", arcbox_agent.address, "info", stdout=theirs) as process:
            os.close(theirs)
            assert process.wait(30) == 0
        assert "╭" in terminal.read(65536).decode()


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(SIZE_OF_SEVERAL_CHUNKS))
    return path


def cat(agent: RunningAgent, *arguments: str) -> bytes:
    with start("cat", *arguments, "--connect", agent.address) as process:
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")
    return stdout


def test_cat_writes_a_file_of_any_size_byte_for_byte(arcbox_agent: RunningAgent, large_file: Path) -> None:
    assert cat(arcbox_agent, str(large_file)) == large_file.read_bytes()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (5, 4 * 1024 * 1024), (4 * 1024 * 1024 - 1, 4 * 1024 * 1024 + 2), (SIZE_OF_SEVERAL_CHUNKS, 5)],
)
def test_cat_writes_the_part_that_it_was_asked_for(
    arcbox_agent: RunningAgent, large_file: Path, offset: int, length: int
) -> None:
    written = cat(arcbox_agent, str(large_file), "--offset", str(offset), "--length", str(length))
    assert written == large_file.read_bytes()[offset : offset + length]


def test_cat_of_an_empty_file_writes_nothing(arcbox_agent: RunningAgent, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert cat(arcbox_agent, str(tmp_path / "empty")) == b""


def test_cat_of_a_file_that_claims_to_be_empty_says_so(arcbox_agent: RunningAgent) -> None:
    result = arcboxctl("cat", "/proc/../proc/meminfo", address=arcbox_agent.address)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("arcboxctl: /proc/../proc/meminfo claims to be empty")


def test_cat_in_json_has_the_parts_in_base64(arcbox_agent: RunningAgent, large_file: Path) -> None:
    parts = [json.loads(line) for line in cat(arcbox_agent, str(large_file), "--json").splitlines()]
    data = b"".join(base64.b64decode(part["data"]) for part in parts)
    assert data == large_file.read_bytes()
    assert [part["offset"] for part in parts] == [0, 4 * 1024 * 1024, 8 * 1024 * 1024]


def test_cat_into_a_pipe_that_closes_early_ends_quietly_as_cat_does(
    arcbox_agent: RunningAgent, large_file: Path
) -> None:
    with start("cat", str(large_file), "--connect", arcbox_agent.address) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_a_full_disk_under_stdout_is_one_line(arcbox_agent: RunningAgent) -> None:
    with Path("/dev/full").open("wb") as full, start("info", "--connect", arcbox_agent.address, stdout=full) as process:
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (1, b"arcboxctl: cannot write the output: no space left on device\n")


def test_a_file_that_is_not_there_is_one_line_and_exit_code_1(arcbox_agent: RunningAgent) -> None:
    result = arcboxctl("cat", "/no/such/file", address=arcbox_agent.address)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "arcboxctl: No such file or directory: /no/such/file\n"


def test_trim_shows_what_was_trimmed(arcbox_agent: RunningAgent) -> None:
    assert arcboxctl("trim", address=arcbox_agent.address).stdout == "no data volume mounted\n"
    assert json.loads(arcboxctl("trim", "--json", address=arcbox_agent.address).stdout) == {
        "result": "no data volume mounted",
        "volumes": [],
    }


def test_what_was_trimmed_is_data_in_json() -> None:
    result = "/var/lib/docker: 4096 bytes trimmed; /srv: 0 bytes trimmed; /mnt: Operation not supported: no discard"
    assert _trimmed_volumes(result) == [
        {"mount": "/var/lib/docker", "trimmed_bytes": 4096},
        {"mount": "/srv", "trimmed_bytes": 0},
        {"mount": "/mnt", "error": "Operation not supported: no discard"},
    ]


def test_version_shows_both_ends(arcbox_agent: RunningAgent) -> None:
    assert arcboxctl("version", address=arcbox_agent.address).stdout == (
        f"arcboxctl {__version__}\nagent {__version__}\n"
    )
    assert json.loads(arcboxctl("version", "--json", address=arcbox_agent.address).stdout) == {
        "arcboxctl": __version__,
        "agent": __version__,
    }


def test_version_needs_no_agent() -> None:
    assert arcboxctl("--version").stdout == f"arcboxctl {__version__}\n"
    assert arcboxctl("version").stdout == f"arcboxctl {__version__}\n"


def test_version_still_shows_its_own_when_the_agent_is_gone() -> None:
    result = arcboxctl("version", address="unix:/no/such/socket")
    assert (result.returncode, result.stdout) == (3, f"arcboxctl {__version__}\n")


def test_a_shutdown_that_the_agent_refuses_is_one_line_with_its_reason(arcbox_agent: RunningAgent) -> None:
    result = arcboxctl("shutdown", "--yes", address=arcbox_agent.address)
    assert result.returncode == 1
    assert result.stderr.startswith("arcboxctl: ShutdownRequest: ")
    assert result.stderr.endswith("(501)\n")
    assert result.stderr.count("\n") == 1


def test_a_shutdown_that_nobody_can_be_asked_about_needs_yes(arcbox_agent: RunningAgent) -> None:
    result = arcboxctl("shutdown", address=arcbox_agent.address)
    assert result.returncode == 2
    assert "say --yes" in result.stderr
    assert "ShutdownRequest" not in arcbox_agent.log


def on_a_terminal(arguments: list[str], typed: bytes) -> tuple[int, str]:
    """Run arcboxctl on a terminal where somebody types; its exit code and what the terminal shows."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        process = subprocess.Popen(  # noqa: S603  the command is our own
            ["setsid", "--ctty", sys.executable, "-m", "arcbox_client.cli", *arguments],  # noqa: S607  util-linux is everywhere
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        with process:
            shown = b""
            while not shown.endswith(b": "):
                shown += terminal.read(1024)
            terminal.write(typed)
            with suppress(OSError):  # EIO: the end of a terminal
                while True:
                    # Ctrl-C just before the interpreter reads is noticed with the next key only: people press it again.
                    if typed == CTRL_C and not select.select([terminal], [], [], 1)[0]:
                        terminal.write(typed)
                    shown += terminal.read(1024)
    return process.returncode, shown.decode()


def test_shutdown_on_a_terminal_asks_first_and_no_means_no(arcbox_agent: RunningAgent) -> None:
    code, shown = on_a_terminal(["shutdown", "--connect", arcbox_agent.address], b"n\n")
    assert code == 1
    assert f"Power off the guest at {arcbox_agent.address}? [y/N]" in shown
    assert "arcboxctl: nothing was done" in shown


def test_shutdown_on_a_terminal_goes_on_after_yes(arcbox_agent: RunningAgent) -> None:
    code, shown = on_a_terminal(["shutdown", "--connect", arcbox_agent.address], b"y\n")
    assert code == 1
    assert "ShutdownRequest: " in shown  # it was sent: this agent refuses


def test_ctrl_c_at_the_question_ends_with_130(arcbox_agent: RunningAgent) -> None:
    code, shown = on_a_terminal(["shutdown", "--connect", arcbox_agent.address], CTRL_C)
    assert code == 130
    assert "Traceback" not in shown


def test_ctrl_c_ends_pings_with_their_summary_and_130(arcbox_agent: RunningAgent) -> None:
    arguments = ["ping", "-c", "0", "-i", "0.01", "--connect", arcbox_agent.address]
    with start(*arguments, PYTHONUNBUFFERED="1") as process:
        assert read_line(process)
        assert read_line(process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")
    assert b"median: " in stdout


@contextmanager
def stopped(agent: RunningAgent) -> Iterator[None]:
    """The agent answers nothing meanwhile."""
    assert agent.pid is not None
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


def test_ctrl_c_while_a_reply_is_waited_for_ends_with_130(arcbox_agent: RunningAgent) -> None:
    arguments = ["ping", "-c", "0", "-i", "0", "--connect", arcbox_agent.address]
    with start(*arguments, PYTHONUNBUFFERED="1") as process:
        assert read_line(process)
        with stopped(arcbox_agent):
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")


def test_no_reply_in_time_is_exit_code_5(arcbox_agent: RunningAgent) -> None:
    with stopped(arcbox_agent):
        result = arcboxctl("ping", "--timeout", "0.2", address=arcbox_agent.address)
    assert result.returncode == 5
    assert result.stderr.startswith("arcboxctl: PingRequest: no reply within 0.2 s")


def test_a_timeout_given_to_a_slow_command_holds_for_it(arcbox_agent: RunningAgent) -> None:
    with stopped(arcbox_agent):
        assert arcboxctl("--timeout", "0.2", "trim", address=arcbox_agent.address).returncode == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ping"], 2, "which agent? Give --connect ADDRESS or set ARCBOX_CONNECT"),
        (["ping", "--connect", "unix:/no/such"], 3, "cannot connect to unix:/no/such: no such file"),
        (["--connect", "tcp:x", "ping"], 2, "'tcp:x' is not the address of an agent: use vsock:CID:PORT"),
        (["bogus"], 2, "no such command 'bogus'"),
        (["ping", "--bogus"], 2, "no such option"),
        (["cat"], 2, "missing argument 'PATH'"),
        (["--timeout", "0", "ping"], 2, "invalid value for '--timeout'"),
        (["--timeout", "nan", "ping"], 2, "invalid value for '--timeout'"),
        (["completion", "tcsh"], 2, "invalid value for"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code_and_in_json_when_asked_for(
    arguments: list[str], code: int, message: str
) -> None:
    result = arcboxctl(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(f"arcboxctl: {message}")
    assert result.stderr.count("\n") == 1
    as_json = arcboxctl(*arguments, "--json")
    assert as_json.returncode == code
    error = json.loads(as_json.stderr)["error"]
    assert error["message"].startswith(message)
    assert error["exit_code"] == code


@pytest.mark.parametrize(
    ("arguments", "code"), [(("cat", "/srv/\udcff"), 2), (("sandbox", "run", "web", "echo", "\udcff"), 125)]
)
def test_an_argument_that_is_no_text_is_one_line(
    arguments: tuple[str, ...], code: int, arcbox_agent: RunningAgent
) -> None:
    result = arcboxctl(*arguments, address=arcbox_agent.address)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr == f"arcboxctl: {arguments[-1]!r} is not UTF-8, which is all that an agent can be told\n"


def test_an_error_of_the_agent_in_json_has_its_code_and_request(arcbox_agent: RunningAgent) -> None:
    error = json.loads(arcboxctl("--json", "cat", "/no/such", address=arcbox_agent.address).stderr)["error"]
    assert (error["code"], error["request"]) == (2, "MmapReadFileRequest")
    assert error["trace_id"]


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    result = arcboxctl("--help")
    for word in ("ping", "info", "cat", "trim", "shutdown", "version", "completion", "Exit codes:", "130"):
        assert word in result.stdout
    assert result.returncode == 0


def test_without_a_command_help_goes_to_stderr() -> None:
    result = arcboxctl()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: arcboxctl")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_completion_script(shell: str) -> None:
    result = arcboxctl("completion", shell)
    assert result.returncode == 0
    assert "_ARCBOXCTL_COMPLETE" in result.stdout


def test_what_the_script_asks_is_answered() -> None:
    with start(_ARCBOXCTL_COMPLETE="bash_complete", COMP_WORDS="arcboxctl pi", COMP_CWORD="1") as process:
        assert process.communicate(timeout=30) == (b"plain,ping\n", b"")


@pytest.mark.parametrize("missing", ["click", "rich", "yaml"])
def test_without_its_extra_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capfd.readouterr().err == f"arcboxctl: {missing} is not installed: pip install 'arcbox-agent[host]'\n"


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 30, "3.0 GiB"), (1 << 60, "1024.0 PiB")],
)
def test_sizes_are_shown_in_a_unit_that_fits(size: int, shown: str) -> None:
    assert human_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_durations_are_shown_in_their_two_largest_units(seconds: int, shown: str) -> None:
    assert human_duration(seconds) == shown
