"""What can go wrong in the guest, in words that a person at the host can act on.

Raised by services and drivers; `handlers` has the table that turns them into reply codes. A `GuestError` that is
none of the narrower ones is a failure of the guest's own: the request was fine, and so was its timing.
"""

from __future__ import annotations


class GuestError(Exception):
    """The base of all errors of this package; its text is a whole sentence for the peer."""


class InvalidArgumentError(GuestError):
    """The request asks for something that makes no sense."""


class NotFoundError(GuestError):
    """What the request names does not exist."""


class ConflictError(GuestError):
    """It exists already, or is in the wrong state for this."""


class PreconditionError(GuestError):
    """It is in the wrong state for this, in the words of later hosts' requests; `ConflictError` in all others."""


class TooLargeError(GuestError):
    """More bytes than this guest takes for such a thing."""


class OutOfRangeError(GuestError):
    """An offset beyond what there is."""


class PausedError(GuestError):
    """The sandbox is paused: nothing runs in it until it is resumed."""


class NotSupportedError(GuestError):
    """This guest can't do that, and trying again won't help."""


class UnavailableError(GuestError):
    """Not now: something that is needed is not running, or used up."""


class TimedOutError(GuestError):
    """It took longer than it was given."""
