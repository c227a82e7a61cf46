"""What can go wrong between a host and an agent. Everything that the client raises on purpose is an `AgentError`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from arcbox_protocol.errors import ErrorCode

if TYPE_CHECKING:
    from arcbox_protocol import ErrorReply, MessageType

_LARGEST_ERRNO = 399
"""Linux has none above 133; from 400 on, codes are the HTTP-like ones of every other request."""


class AgentError(Exception):
    """The base of all errors of this package."""


class InvalidAddressError(AgentError, ValueError):
    """A text that is no address of an agent."""


class ConnectError(AgentError):
    """No connection came about. `address` is where to, `reason` why not."""

    def __init__(self, address: object, reason: str) -> None:
        super().__init__(f"cannot connect to {address}: {reason}")
        self.address = str(address)
        self.reason = reason


class ConnectTimedOutError(ConnectError, TimeoutError):
    """No connection came about in time."""


class HandshakeError(ConnectError):
    """The VMM behind a `unix:PATH?port=N` address did not pass the connection on to the guest."""


class ConnectionLostError(AgentError):
    """The connection ended, or had ended already. A request that was under way may have been carried out or not.

    `reply` is what the agent said before it closed the connection, where it said something: for example 503 when it
    has too many connections.
    """

    def __init__(self, message: str, reply: ErrorReply | None = None) -> None:
        super().__init__(message)
        self.reply = reply


class ProtocolViolationError(AgentError):
    """The agent said something that the protocol does not allow."""


class TimedOutError(AgentError, TimeoutError):
    """No reply came in time. The request may have been carried out or not; a late reply is dropped."""


class SandboxFailedError(AgentError):
    """A sandbox that did not get ready: `id`, its `state` (failed, stopping, stopped or removed) and the `reason`."""

    def __init__(self, id: str, state: str, reason: str) -> None:
        how = {"failed": "has failed", "removed": "was removed"}.get(state, f"is {state}")
        super().__init__(f"sandbox {id} {how}: {reason}")
        self.id = id
        self.state = state
        self.reason = reason


class NotificationsMissedError(AgentError):
    """Notifications came faster than they were taken: the `count` oldest are gone, the later ones follow."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} notifications came faster than they were taken, and are gone")
        self.count = count


class RequestFailedError(AgentError):
    """The agent answered a request with an error.

    `code` is an `ErrorCode` or a number that has no name here, `message` is the agent's sentence, `request` the type of
    the request and `trace_id` what its lines in the agent's log bear.
    """

    def __init__(self, code: int, message: str, request: MessageType, trace_id: str = "") -> None:
        super().__init__(code, message, request, trace_id)
        self.code = code
        self.message = message
        self.request = request
        self.trace_id = trace_id

    def __str__(self) -> str:
        return f"{self.request.name}: {self.message or 'the agent gives no reason'} ({self.code})"


class BadRequestError(RequestFailedError):
    """400: the request makes no sense to the agent."""


class NotFoundError(RequestFailedError):
    """404: what the request names does not exist."""


class ConflictError(RequestFailedError):
    """409: it is in the wrong state for the request, or exists already."""


class PreconditionFailedError(RequestFailedError):
    """412: what it is about is not as the request wants it: the sandbox's state, a directory that is not empty."""


class TooLargeError(RequestFailedError):
    """413: the request is larger than the agent takes."""


class OutOfRangeError(RequestFailedError):
    """416: an offset beyond what there is."""


class PausedError(RequestFailedError):
    """423: the sandbox is paused."""


class InternalError(RequestFailedError):
    """500: the agent failed; its log says how."""


class NotSupportedError(RequestFailedError):
    """501: this agent, or this guest, can't do that."""


class UnavailableError(RequestFailedError):
    """503: not now."""


class GuestTimedOutError(RequestFailedError):
    """504: the agent waited for something in the guest, in vain."""


class FileReadError(RequestFailedError, OSError):
    """A file of the guest can't be read: `errno`, `strerror` and `filename` are those of an `OSError`."""

    def __init__(self, code: int, message: str, request: MessageType, trace_id: str = "", path: str = "") -> None:
        RequestFailedError.__init__(self, code, message, request, trace_id)
        reason, separator, _ = message.rpartition(f": {path}")  # the guest's own words, where it says them in our form
        OSError.__init__(self, code, reason if separator else os.strerror(code), path)

    def __str__(self) -> str:
        return f"{self.strerror}: {self.filename}"


_ERRORS: dict[int, type[RequestFailedError]] = {
    ErrorCode.BAD_REQUEST: BadRequestError,
    ErrorCode.NOT_FOUND: NotFoundError,
    ErrorCode.CONFLICT: ConflictError,
    ErrorCode.PRECONDITION_FAILED: PreconditionFailedError,
    ErrorCode.TOO_LARGE: TooLargeError,
    ErrorCode.RANGE_NOT_SATISFIABLE: OutOfRangeError,
    ErrorCode.LOCKED: PausedError,
    ErrorCode.INTERNAL: InternalError,
    ErrorCode.NOT_SUPPORTED: NotSupportedError,
    ErrorCode.UNAVAILABLE: UnavailableError,
    ErrorCode.TIMED_OUT: GuestTimedOutError,
}


def request_failed(reply: ErrorReply, request: MessageType, trace_id: str) -> RequestFailedError:
    """The error that stands for an Error frame."""
    return _ERRORS.get(reply.code, RequestFailedError)(reply.code, reply.message, request, trace_id)


def file_read_failed(error: RequestFailedError, path: str) -> RequestFailedError:
    """The error for a file that can't be read, where `error` has an errno; `error` itself where it has another code."""
    if 0 < error.code <= _LARGEST_ERRNO:
        return FileReadError(error.code, error.message, error.request, error.trace_id, path)
    return error
