"""The one table that turns errors into reply codes."""

from __future__ import annotations

from arcbox_guest.errors import (
    ConflictError,
    GuestError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    OutOfRangeError,
    PausedError,
    PreconditionError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)
from arcbox_protocol import ErrorReply
from arcbox_protocol.errors import ErrorCode, RemoteProtocolError

_CODES: dict[type[Exception], ErrorCode] = {
    InvalidArgumentError: ErrorCode.BAD_REQUEST,
    NotFoundError: ErrorCode.NOT_FOUND,
    ConflictError: ErrorCode.CONFLICT,
    PreconditionError: ErrorCode.PRECONDITION_FAILED,
    TooLargeError: ErrorCode.TOO_LARGE,
    OutOfRangeError: ErrorCode.RANGE_NOT_SATISFIABLE,
    PausedError: ErrorCode.LOCKED,
    NotSupportedError: ErrorCode.NOT_SUPPORTED,
    UnavailableError: ErrorCode.UNAVAILABLE,
    TimedOutError: ErrorCode.TIMED_OUT,
    GuestError: ErrorCode.INTERNAL,
}


class CommandError(Exception):
    """A command's own answer in place of a reply, for codes that no guest error stands for (MmapReadFile's errno)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def error_reply(error: Exception) -> ErrorReply | None:
    """What to tell the peer about an error; None for one that nobody foresaw, whose text is for the log."""
    if isinstance(error, CommandError | RemoteProtocolError):
        return ErrorReply(int(error.code), str(error))
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return ErrorReply(int(code), str(error))
    return None
