"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings


def pytest_configure() -> None:
    """Take SIGINT back where it is ignored, as in what a script runs in the background: child processes inherit that.

    Tests press Ctrl-C on such children, and would wait for ever for those that never notice.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("arcbox", deadline=None)  # a busy machine is no fault
    settings.load_profile("arcbox")
