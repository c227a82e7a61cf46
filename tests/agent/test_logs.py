"""The log: one harmless line for each record, whoever chose its content, and no trouble when nobody reads it."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TextIO

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from arcbox_agent._log_output import LogOutput
from arcbox_agent.logs import LogHandler
from arcbox_agent.request_context import current_peer, current_request, request_fields
from arcbox_agent.settings import Log
from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes.model import NetworkMode, Spec
from arcbox_guest.sandboxes.testing import FakeDriver, fake_manager
from arcbox_protocol import Frame, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Say = Callable[[logging.Logger], object]
    Records = Callable[[Say], list[dict[str, Any]]]

    class Lines(Protocol):
        """Lets a function log, and returns the lines that came of it."""

        def __call__(self, say: Say, log_format: Format = "json") -> list[str]: ...


Format = Literal["json", "console"]

EVIL = 'a\nb\r\x1b[2J\x9b31m\u2028\u202e\x7f\x00 "{}" =\ud800'


@contextmanager
def logger_to(stream: TextIO, log_format: Format = "json") -> Iterator[logging.Logger]:
    """A logger whose records go to a stream, and nowhere else."""
    handler = LogHandler(Log(format=log_format), stream)
    logger = logging.Logger("agent.tests", logging.DEBUG)  # noqa: LOG001  getLogger's has handlers of pytest's too
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


@contextmanager
def log_to(path: Path, log_format: Format) -> Iterator[logging.Logger]:
    """The same, into a file."""
    with path.open("w") as stream, logger_to(stream, log_format) as logger:
        yield logger


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """Lets a function log, and returns the lines that came of it."""

    def log(say: Say, log_format: Format = "json") -> list[str]:
        path = tmp_path / "log"
        with log_to(path, log_format) as logger:
            say(logger)
        text = path.read_bytes().decode("utf-8")
        assert text.endswith("\n")
        return text[:-1].split("\n")

    return log


@pytest.fixture
def records(lines: Lines) -> Records:
    """The same, as parsed JSON."""
    return lambda say: [json.loads(line) for line in lines(say)]


def test_a_record_is_one_json_object_with_time_level_logger_event_and_extras(records: Records) -> None:
    (record,) = records(lambda log: log.info("trimmed %s", "/data", extra={"bytes": 5, "parts": ["a", 1]}))
    written = datetime.fromisoformat(record.pop("timestamp"))
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert record == {
        "level": "info",
        "logger": "agent.tests",
        "event": "trimmed /data",
        "bytes": 5,
        "parts": ["a", 1],
    }


@contextmanager
def request(trace_id: str, *, peer: str = "unix") -> Iterator[None]:
    """Work on a ping."""
    peer_before = current_peer.set(peer)
    request_before = current_request.set(Frame(MessageType.PingRequest, trace_id, b"secret"))
    yield
    current_request.reset(request_before)
    current_peer.reset(peer_before)


def test_a_record_says_whose_request_it_was_written_for(records: Records) -> None:
    def say(log: logging.Logger) -> None:
        with request("trace-1", peer="vsock:2:5000"):
            log.info("answered")
        log.info("elsewhere")

    answered, elsewhere = records(say)
    assert answered["peer"] == "vsock:2:5000"
    assert answered["request"] == "PingRequest"
    assert answered["trace_id"] == "trace-1"
    assert "secret" not in json.dumps(answered)
    assert not {"peer", "request", "trace_id"} & elsewhere.keys()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_whatever_a_peer_chose_stays_on_one_line_and_can_not_talk_to_a_terminal(
    lines: Lines, log_format: Format
) -> None:
    def say(log: logging.Logger) -> None:
        with request(EVIL):
            log.warning("path %s", EVIL, extra={"path": EVIL, "inside": [EVIL, {EVIL: EVIL}], EVIL: 1})

    (line,) = lines(say, log_format)
    assert line.isprintable()


@given(st.text(), st.text(), st.text(min_size=1).filter(lambda key: key not in vars(logging.makeLogRecord({}))))
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_text_at_all_makes_a_second_line(
    tmp_path_factory: pytest.TempPathFactory, log_format: Format, event: str, value: str, key: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "log"
    with log_to(path, log_format) as log:
        log.warning("%s", event, extra={key: value} if key not in {"message", "asctime"} else {})
    text = path.read_bytes().decode()
    assert text[-1] == "\n"
    assert text[:-1].isprintable()


def test_what_a_peer_chose_is_in_json_exactly_as_it_was(records: Records) -> None:
    (record,) = records(lambda log: log.warning("x", extra={"path": EVIL}))
    assert record["path"] == EVIL


def test_a_value_can_not_pass_for_another_field_on_a_console(lines: Lines) -> None:
    (line,) = lines(lambda log: log.warning("x", extra={"path": "/a' level='error"}), "console")
    assert "\"/a' level='error\"" in line


def test_a_traceback_is_one_field_of_json(records: Records) -> None:
    def say(log: logging.Logger) -> None:
        try:
            int(EVIL)
        except ValueError:
            log.exception("failed")

    (record,) = records(say)
    assert record["event"] == "failed"
    assert record["exception"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: invalid literal for int()" in record["exception"]


def test_a_traceback_on_a_console_is_indented_and_says_nothing_to_the_terminal(lines: Lines) -> None:
    error = ValueError(f"x\n2026-01-01T00:00:00Z [info] a forged record {EVIL}")
    first, *rest = lines(lambda log: log.error("failed", exc_info=error), "console")
    assert "failed" in first
    assert any("a forged record" in line for line in rest)
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_an_exception_group_is_told_with_all_that_is_in_it(records: Records) -> None:
    group = ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    (record,) = records(lambda log: log.error("failed", exc_info=group))
    assert "ValueError: one" in record["exception"]
    assert "KeyError: 'two'" in record["exception"]


def test_a_value_that_json_does_not_know_is_shown_by_its_repr(records: Records) -> None:
    looped: list[Any] = []
    looped.append(looped)
    extra = {"path": Path("/a"), "number": float("inf"), "loop": looped, "table": {(1, 2): 3}, "bytes": b"\0"}
    (record,) = records(lambda log: log.warning("x", extra=extra))
    assert record["path"] == repr(Path("/a"))
    assert record["number"] == "inf"
    assert record["loop"] == "[[...]]"
    assert record["table"] == "{(1, 2): 3}"
    assert record["bytes"] == repr(b"\0")


def test_an_extra_can_not_replace_what_the_log_says_itself(records: Records) -> None:
    (record,) = records(lambda log: log.warning("x", extra={"event": "other", "level": "info", "timestamp": 0}))
    assert (record["event"], record["level"]) == ("x", "warning")
    assert (record["event_"], record["level_"], record["timestamp_"]) == ("other", "info", 0)


async def test_the_life_of_a_sandbox_is_not_logged_as_a_request_s() -> None:
    class Failing(FakeDriver):
        async def create(self, spec: Spec) -> NoReturn:
            await trio.lowlevel.checkpoint()
            seen.append(request_fields())
            raise GuestError("no room")

    seen: list[dict[str, str]] = []
    manager = fake_manager(Failing())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.run)
        with request("of the creation"):
            await manager.create(Spec(id="web", network=NetworkMode.NONE))
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == [{"sandbox": "web"}]


def test_huge_values_are_cut_and_say_how_long_they_were(records: Records) -> None:
    def say(log: logging.Logger) -> None:
        with request("t" * 65_535):
            log.warning("x" * 10_000, extra={"path": "y" * 10**6, "items": list(range(10_000))})

    (record,) = records(say)
    assert record["path"].endswith("… (1000000 characters)")
    assert record["trace_id"].endswith("… (65535 characters)")
    assert len(json.dumps(record)) < 5_000


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_record_that_can_not_be_rendered_is_replaced_by_one_that_says_where(lines: Lines, log_format: Format) -> None:
    def say(log: logging.Logger) -> None:
        log.warning("x", extra={"broken": Broken()})
        log.warning("%d things", "three")

    first, second = lines(say, log_format)
    assert "a log record can't be rendered: RuntimeError at " in first
    assert "a log record can't be rendered: TypeError at " in second
    assert Path(__file__).name in first


def test_a_pipe_that_nobody_empties_costs_records_and_not_the_agent() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream, logger_to(stream) as log:
        for number in range(1_000):  # ten times what a pipe holds
            log.warning("%d", number, extra={"padding": "x" * 600})
        os.set_blocking(reading, False)
        before = reader.read()
        log.warning("read again")
        after = reader.read()
    *whole, _cut = before.split(b"\n")
    assert [json.loads(line)["event"] for line in whole] == [str(number) for number in range(len(whole))]
    lost, again = [json.loads(line) for line in after.split(b"\n")[-3:-1]]
    assert lost["event"] == f"{1_000 - len(whole)} log records were lost"
    assert again["event"] == "read again"


def test_a_line_that_was_cut_off_does_not_run_into_the_next_one() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w"):
        output = LogOutput(writing)
        assert not output.write("x" * 2**20)
        assert set(reader.read(2**20)) == {ord("x")}
        assert output.write("next")
        assert reader.read(2**20) == b"\nnext\n"


def test_a_pipe_whose_reader_is_gone_is_no_trouble() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, logger_to(stream) as log:
        log.warning("nobody is there")


def run_python(
    code: str, *, stderr: int = subprocess.PIPE, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(  # noqa: S603  our own interpreter
        command, stdout=subprocess.PIPE, stderr=stderr, env=env, text=True, check=False, timeout=30
    )


def test_python_warnings_go_to_the_log() -> None:
    code = (
        "import warnings; from arcbox_agent import logs; from arcbox_agent.settings import Log;"
        "logs.configure(Log()); warnings.warn('careful')"
    )
    record = json.loads(run_python(code).stderr)
    assert (record["logger"], record["level"]) == ("py.warnings", "warning")
    assert "UserWarning: careful" in record["event"]


def test_a_process_without_standard_error_goes_on() -> None:
    code = (
        "import sys, logging; from arcbox_agent import logs; from arcbox_agent.settings import Log;"
        "assert sys.stderr is None;"
        "logs.configure(Log()); logging.error('nobody hears'); print('alive')"
    )
    completed = subprocess.run(  # noqa: S602  a shell closes the descriptor
        f'exec "{sys.executable}" -c "$CODE" 2>&-',
        shell=True,
        env={**os.environ, "CODE": code},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    assert (completed.returncode, completed.stdout) == (0, "alive\n")


def test_the_log_is_readable_and_coloured_on_a_terminal_and_json_elsewhere() -> None:
    code = (
        "import logging; from arcbox_agent import logs; from arcbox_agent.settings import Log;"
        "logs.configure(Log()); logging.warning('careful')"
    )
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "rb", buffering=0) as shown:
        plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
        run_python(code, stderr=terminal, env=plain)
        coloured = shown.read(4096)
        run_python(code, stderr=terminal, env={**plain, "NO_COLOR": "1"})
        colourless = shown.read(4096)
        os.close(terminal)
    assert b"careful" in coloured
    assert b"\x1b[" in coloured
    assert b"careful" in colourless
    assert b"\x1b" not in colourless
    assert not colourless.startswith(b"{")
    assert json.loads(run_python(code).stderr)["event"] == "careful"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_each_line_for_the_journal_begins_with_its_priority(
    log_format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    status = os.fstat(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with os.fdopen(reading) as lines:
        with os.fdopen(writing, "w") as stream, logger_to(stream, log_format) as log:
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
                log.log(level, "said")
            log.error("with a traceback", exc_info=ValueError("oh"))
        said = lines.read().splitlines()
    assert [line[:3] for line in said[:5]] == ["<7>", "<6>", "<4>", "<3>", "<3>"]
    assert {line[:3] for line in said[5:]} == {"<3>"}
    assert len(said) >= 6


@pytest.mark.parametrize("stream", ["", "1:1", "junk"])
def test_what_does_not_go_to_the_journal_has_no_priority(
    stream: str, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    (record,) = records(lambda log: log.warning("said"))
    assert record["event"] == "said"


def test_a_log_that_can_not_be_rendered_at_all_does_not_fail_who_logs() -> None:
    code = (
        "import sys, logging; from arcbox_agent import logs; from arcbox_agent.settings import Log;"
        "logs.json = None; logs.configure(Log()); logging.error('x'); print('alive')"
    )
    assert run_python(code).stdout == "alive\n"
