"""What tests of real file systems need."""

from __future__ import annotations

from pathlib import Path

import pytest

CAP_SYS_ADMIN = 21


@pytest.fixture
def may_mount() -> None:
    """Skip the test where this process may not mount file systems."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if not int(status["CapEff"], 16) >> CAP_SYS_ADMIN & 1:
        pytest.skip("mounting takes root, with CAP_SYS_ADMIN")
