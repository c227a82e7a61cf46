"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings


def pytest_configure() -> None:
    """Take SIGINT and SIGQUIT back where they are ignored, as in what a script runs in the background.

    Child processes inherit that, and tests that press Ctrl-C on such children would wait for ever.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    settings.register_profile("arcbox", deadline=None)  # a busy machine is no fault
    settings.load_profile("arcbox")
