"""`arcbox-agent` as a user meets it: what it prints, what it complains of, its exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from arcbox_agent.__main__ import run
from arcbox_agent.settings import FILE_VARIABLE, Settings, show, values
from arcbox_protocol import __version__

AGENT = [sys.executable, "-m", "arcbox_agent"]


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.touch()
    monkeypatch.setenv(FILE_VARIABLE, str(file))


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own interpreter
        [*AGENT, *arguments], capture_output=True, text=True, check=False, timeout=30
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command line that is refused gets to read."""
    try:
        status: object = run(arguments)
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err


def test_the_version_is_that_of_the_distribution() -> None:
    completed = agent("--version")
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, f"arcbox-agent {__version__}\n", "")


def test_the_console_script_and_the_module_are_the_same_program() -> None:
    script = Path(sys.executable).parent / "arcbox-agent"
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603  ours
    assert shown.stdout == agent("--help").stdout


@pytest.mark.parametrize("command", ["serve", "config", "check"])
def test_help_names_every_command_and_each_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    assert ended.value.code == 0
    assert f"\n    {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: arcbox-agent {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["srve"], "srve"),
        (["serve", "--lisen", "vsock:1"], "--lisen"),
        (["serve", "--listen"], "--listen"),
        (["check", "--confg", "x"], "--confg"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line_that_points_to_the_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    said = refused(capsys, *arguments)
    assert said.startswith("arcbox-agent: ")
    assert complaint in said
    assert said.endswith("--help)\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "config"])
def test_a_mistake_in_the_settings_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("limits.max_fram = 1")
    said = refused(capsys, command, "--config", str(path))
    assert said == f"arcbox-agent: {path}: limits.max_fram: unknown key; did you mean limits.max_frame?\n"


def test_an_address_that_is_none_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "serve", "--listen", "localhost:80").startswith("arcbox-agent: --listen: 'localhost:80'")


def test_config_shows_every_setting_with_where_it_came_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[limits]\nmax_frame = 4096\n")
    assert run(["config", "--config", str(path)]) == 0
    first, empty, head, *lines = capsys.readouterr().out.splitlines()
    assert first == f"Settings file: {path}"
    assert (empty, head.split()) == ("", ["SETTING", "FROM", "VALUE"])
    rows = {line.split()[0]: line for line in lines}
    assert set(rows) == set(values(Settings()))
    assert rows["limits.max_frame"].split()[1:] == [str(path), "4096"]
    assert rows["limits.max_connections"].split()[1:] == ["default", "1024"]
    assert all(line[head.index("FROM")] != " " and line[head.index("FROM") - 1] == " " for line in lines)


def test_what_config_shows_can_be_written_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    run(["config"])
    *_, table = capsys.readouterr().out.partition("VALUE\n")
    for line in table.splitlines():
        key, _origin, value = line.split(maxsplit=2)
        assert show(tomllib.loads(f"{key} = {value}").popitem()[1]) in {value, "a table"}


def test_config_as_json_has_value_and_origin_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == os.environ[FILE_VARIABLE]
    assert report["settings"]["power.off"] == {"value": "auto", "origin": "default"}
    assert report["settings"]["vsock.allowed_cids"]["value"] == [2]
    assert set(report["settings"]) == set(values(Settings()))


def test_config_says_when_there_is_no_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE)
    if Path("/etc/arcbox/agent.toml").exists():
        pytest.skip("this machine has an agent.toml of its own")
    assert run(["config"]) == 0
    assert capsys.readouterr().out.startswith("No settings file: ")


def test_check_is_a_table_for_people_and_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check"]) == 0
    assert capsys.readouterr().out.startswith("NAME ")
    assert run(["check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert "vsock" in {finding["name"] for finding in report["findings"]}


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    completed = subprocess.run(  # noqa: S603  our own interpreter
        [*AGENT, "config"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=30
    )
    os.close(writing)
    assert completed.stderr == ""


def test_output_that_can_not_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        completed = subprocess.run(  # noqa: S603  our own interpreter
            [*AGENT, "config"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30
        )
    assert completed.returncode == 1
    assert completed.stderr == "arcbox-agent: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_descriptors_that_are_closed_are_no_trouble(closed: str) -> None:
    completed = subprocess.run(  # noqa: S602  a shell closes them
        f'exec "{sys.executable}" -m arcbox_agent config {closed}',
        shell=True,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (completed.returncode, completed.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_agent_serves_ends_it_without_a_word(number: signal.Signals) -> None:
    code = (
        "import os, arcbox_agent.__main__ as program\n"
        f"program.run = lambda _: os.kill(os.getpid(), {number:d})\n"
        "program.main()\n"
        "print('still here')"
    )
    completed = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert (completed.returncode, completed.stdout, completed.stderr) == (-number, "", "")


def test_a_socket_from_systemd_that_is_none_is_one_line_and_status_1() -> None:
    script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "{sys.executable}" -m arcbox_agent serve 3</dev/null'
    completed = subprocess.run(  # noqa: S602  a shell knows its pid before it becomes the agent
        script, shell=True, capture_output=True, text=True, check=False, timeout=30
    )
    assert completed.returncode == 1
    assert completed.stderr.startswith("arcbox-agent: ")
    assert completed.stderr.count("\n") == 1


def test_a_failure_that_nobody_foresaw_has_its_traceback_in_the_log_and_status_1() -> None:
    code = (
        "import sys, arcbox_agent.server, arcbox_agent.__main__ as program\n"
        "arcbox_agent.server.serve = lambda _: 1 / 0\n"
        "sys.exit(program.run(['serve', '--listen', 'unix:/nonexistent/agent.sock']))"
    )
    completed = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert completed.returncode == 1
    record = json.loads(completed.stderr)
    assert record["level"] == "error"
    assert "ZeroDivisionError" in record["exception"]


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox, of Debian's busybox-static")
def test_rootfs_build_makes_a_root_file_system_and_says_nothing(tmp_path: Path) -> None:
    done = agent("rootfs", "build", str(tmp_path / "tree"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "tree/bin/sh").exists()
    again = agent("rootfs", "build", str(tmp_path / "tree"))
    assert (again.returncode, again.stderr) == (1, f"arcbox-agent: {tmp_path}/tree exists already\n")
