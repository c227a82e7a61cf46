"""The log: what modules say through `logging`, rendered by structlog, written to standard error.

Modules write `logging.getLogger(__name__).info("what happened", extra={"key": value})`; peer, request type and trace id
come by themselves. Payloads are never logged. Much of the rest was chosen by a peer, so whatever it holds stays on one
line, harmless to terminals and of bounded length. Only tracebacks have lines of their own, and those are indented.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from functools import partial
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final, TextIO

from arcbox_agent._log_output import LogOutput
from arcbox_agent.request_context import request_fields

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter
    from structlog.typing import EventDict

    from arcbox_agent.settings import Log

_LONGEST_VALUE: Final = 1_000
"""Characters of one field: a trace id alone may have 65,535."""

_LONGEST_TRACEBACK: Final = 20_000

_MOST_HELD: Final = 200
"""Records that wait for `warm_up`."""

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "request_fields"}
"""The attributes of a record that are no extras."""

_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""The priorities of syslog(3) from which level on, for the journal: sd-daemon(3)."""

_RESERVED: Final = {"timestamp", "level", "logger", "event", "exception", "exc_info", "stack"}


def configure(settings: Log, stream: TextIO | None = None) -> None:
    """Send all log records of this process, and Python's warnings, to a stream.

    Args:
        settings: level and format.
        stream: standard error if none. Only its file descriptor is used. Where there is none, nothing is logged.
    """
    handler: logging.Handler
    try:
        handler = LogHandler(settings, stream or sys.stderr)
    except (AttributeError, OSError, ValueError):  # started without one, or closed
        handler = logging.NullHandler()
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)


def warm_up() -> None:
    """Load what rendering takes, in any thread, and write what was held back until now."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            handler.warm_up()


class LogHandler(logging.Handler):
    """Writes each record as one line.

    Loading structlog would make an agent's start slower. So records are held back, with what they say of their
    requests, until `warm_up` or until one matters: a warning, too many of them, or the end of the process.
    """

    def __init__(self, settings: Log, stream: TextIO) -> None:
        super().__init__()
        descriptor = stream.fileno()
        self._stream = stream  # a file that nobody holds is closed
        on_terminal = os.isatty(descriptor)
        as_json = settings.format == "json" or (settings.format == "auto" and not on_terminal)
        colors = on_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._build_formatter = partial(_build_formatter, as_json=as_json, colors=colors)
        self._formatter: logging.Formatter | None = None
        self._to_journal = _is_journal(descriptor)
        self._output = LogOutput(descriptor)
        self._held: list[logging.LogRecord] = []
        self._lost = 0

    def warm_up(self) -> None:
        """Load what rendering takes, and write what was held back."""
        if self._formatter is None:
            self._formatter = self._build_formatter()  # outside the lock: the event loop may log meanwhile
        self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or hold it back."""
        record.request_fields = request_fields()
        self._held.append(record)
        matters = record.levelno >= logging.WARNING or len(self._held) >= _MOST_HELD
        if matters or self._formatter is not None:
            try:
                self.flush()
            except Exception:  # noqa: BLE001  whatever it is, it is not the business of who logs
                self.handleError(record)

    def flush(self) -> None:
        """Write what was held back."""
        self.acquire()
        try:
            if self._held and self._formatter is None:
                self._formatter = self._build_formatter()
            while self._held:
                self._write(self._held.pop(0))
        finally:
            self.release()

    def _write(self, record: logging.LogRecord) -> None:
        if self._lost and self._output.write(self._render(_complaint(f"{self._lost} log records were lost"))):
            self._lost = 0
        if not self._output.write(self._render(record)):
            self._lost += 1

    def _render(self, record: logging.LogRecord) -> str:
        text = self._format(record)
        if not self._to_journal:
            return text
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))

    def _format(self, record: logging.LogRecord) -> str:
        assert self._formatter is not None  # noqa: S101  for mypy: only `flush` comes here
        try:
            return self._formatter.format(record)
        except Exception as error:  # noqa: BLE001  a value whose repr raises, arguments that do not fit their text
            where, why = f"{record.pathname}:{record.lineno}", type(error).__name__
            return self._formatter.format(_complaint(f"a log record can't be rendered: {why} at {where}"))


def _is_journal(descriptor: int) -> bool:
    """Whether a descriptor leads to the journal, which takes a priority in front of each line: systemd.exec(5)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _complaint(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text})


def _build_formatter(*, as_json: bool, colors: bool) -> ProcessorFormatter:
    from structlog.dev import ConsoleRenderer  # noqa: PLC0415  see LogHandler
    from structlog.processors import JSONRenderer  # noqa: PLC0415
    from structlog.stdlib import ProcessorFormatter  # noqa: PLC0415

    if as_json:
        return ProcessorFormatter(processors=[_fields, JSONRenderer()])
    console = ConsoleRenderer(colors=colors, sort_keys=False, repr_native_str=True)
    return ProcessorFormatter(processors=[_fields, _for_people, console])


def _fields(_logger: object, _name: str, event: EventDict) -> EventDict:
    """All that a record says, as plain data: text, numbers, and lists and tables of them."""
    record: logging.LogRecord = event["_record"]
    fields: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": _plain(event["event"]),
    }
    for key, value in {**getattr(record, "request_fields", {}), **vars(record)}.items():
        if key not in _STANDARD:
            fields[f"{key}_" if key in _RESERVED else key] = _plain(value)
    error: BaseException | None = event.get("exc_info", (None, None))[1]
    if error is not None:
        text = "".join(traceback.format_exception(error)).rstrip()
        fields["exception"] = _shortened(text, _LONGEST_TRACEBACK)
    return fields


def _plain(value: object) -> object:
    try:
        text = json.dumps(value, default=repr, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, infinite numbers, tables in themselves
        return _shortened(repr(value))
    if len(text) > _LONGEST_VALUE:
        return _shortened(value if isinstance(value, str) else text)
    return json.loads(text)


def _shortened(text: str, longest: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def _for_people(_logger: object, _name: str, event: EventDict) -> EventDict:
    """The same, with nothing in it that a terminal or a reader would take for something else.

    The values of other fields are rendered by `repr`, which sees to that.
    """
    fields = {_printable(key): value for key, value in event.items()}
    fields["event"] = _printable(str(event["event"]))
    if "exception" in event:
        fields["exception"] = indent("\n".join(map(_printable, event["exception"].split("\n"))), "    ")
    return fields


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
