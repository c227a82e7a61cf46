"""The log: what modules say through `logging`, as JSON or for people, written to standard error.

Modules write `logging.getLogger(__name__).info("what happened", extra={"key": value})`; peer, request type and trace id
come by themselves. Payloads are never logged. Much of the rest was chosen by a peer, so whatever it holds stays on one
line, harmless to terminals and of bounded length. Only tracebacks have lines of their own, and those are indented.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final, TextIO

from arcbox_agent._log_output import LogOutput
from arcbox_agent.request_context import request_fields

if TYPE_CHECKING:
    from arcbox_agent.settings import Log

_LONGEST_VALUE: Final = 1_000
"""Characters of one field: a trace id alone may have 65,535."""

_LONGEST_TRACEBACK: Final = 20_000

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""The attributes of a record that are no extras."""

_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""The priorities of syslog(3) from which level on, for the journal: sd-daemon(3)."""

_PLAIN, _BOLD, _DIM, _CYAN = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"
"""Colours of console_codes(4)."""

_LEVEL_COLORS: Final = {
    "debug": "\x1b[32m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31;1m",
}

_EVENT_WIDTH: Final = 30
"""Columns of the event, so that what follows stands in a column too."""

_WORD: Final = re.compile(r"[\w./:@%+,-]+")

_FIRST: Final = ("timestamp", "level", "logger", "event")

_RESERVED: Final = {*_FIRST, "exception"}


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


class LogHandler(logging.Handler):
    """Writes each record as one line."""

    def __init__(self, settings: Log, stream: TextIO) -> None:
        super().__init__()
        descriptor = stream.fileno()
        self._stream = stream  # a file that nobody holds is closed
        on_terminal = os.isatty(descriptor)
        as_json = settings.format == "json" or (settings.format == "auto" and not on_terminal)
        colors = on_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.formatter = _JsonFormatter() if as_json else _ConsoleFormatter(colors=colors)
        self._to_journal = _is_journal(descriptor)
        self._output = LogOutput(descriptor)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._write(record)
        except Exception:  # noqa: BLE001  whatever it is, it is not the business of who logs
            self.handleError(record)

    def _write(self, record: logging.LogRecord) -> None:
        if self._lost and self._output.write(self._render(_complaint(f"{self._lost} log records were lost"))):
            self._lost = 0
        if not self._output.write(self._render(record)):
            self._lost += 1

    def _render(self, record: logging.LogRecord) -> str:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001  a value whose repr raises, arguments that do not fit their text
            where, why = f"{record.pathname}:{record.lineno}", type(error).__name__
            text = self.format(_complaint(f"a log record can't be rendered: {why} at {where}"))
        if not self._to_journal:
            return text
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def _is_journal(descriptor: int) -> bool:
    """Whether a descriptor leads to the journal, which takes a priority in front of each line: systemd.exec(5)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _complaint(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": text})


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record))


class _ConsoleFormatter(logging.Formatter):
    """For people: nothing in a line that a terminal or a reader would take for something else."""

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        time, level, logger, event = (_printable(str(fields.pop(name))) for name in _FIRST)
        error = fields.pop("exception", "")
        parts = [
            self._painted(_DIM, time),
            self._painted(_LEVEL_COLORS.get(level, ""), f"[{level:<8}]"),
            self._painted(_BOLD, event.ljust(_EVENT_WIDTH)),
            self._painted(_DIM, f"[{logger}]"),
            *(f"{self._painted(_CYAN, _printable(key))}={_shown(value)}" for key, value in fields.items()),
        ]
        lines = [" ".join(parts), *(indent(_printable(line), "    ") for line in error.split("\n") if line)]
        return "\n".join(lines)

    def _painted(self, color: str, text: str) -> str:
        return f"{color}{text}{_PLAIN}" if self._colors and color else text


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """All that a record says, as plain data: text, numbers, and lists and tables of them."""
    fields: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": _plain(record.getMessage()),
    }
    for key, value in {**request_fields(), **vars(record)}.items():
        if key not in _STANDARD:
            fields[f"{key}_" if key in _RESERVED else key] = _plain(value)
    if record.exc_info and (error := record.exc_info[1]):
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


def _shown(value: object) -> str:
    """A value on a console: by `repr`, which escapes what is not printable, unless it is one plain word."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else repr(value)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
