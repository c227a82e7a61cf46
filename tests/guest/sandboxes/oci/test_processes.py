"""How a process is let go of."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest

from arcbox_guest.sandboxes.oci.clients import Client, PipedClient
from arcbox_guest.sandboxes.oci.processes import piped, with_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


class Witness:
    """In place of a client: sees whether a file is still open when it has to kill its process."""

    def __init__(self, fd: int) -> None:
        self.was_open: bool | None = None
        self._fd = fd

    def kill(self) -> None:
        self.was_open = False
        with suppress(OSError):
            os.fstat(self._fd)
            self.was_open = True


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Three, which their user closes."""
    made = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    yield made
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_a_process_that_is_left_is_killed_before_it_sees_the_end_of_its_stdin(files: list[int]) -> None:
    witness = Witness(files[0])
    async with piped(PipedClient(cast("Client", witness), *files)):
        assert witness.was_open is None
    assert witness.was_open


async def test_a_process_that_is_left_is_killed_before_its_terminal_hangs_up(files: list[int]) -> None:
    master, *others = files
    for fd in others:
        os.close(fd)
    witness = Witness(master)
    async with with_terminal(cast("Client", witness), master):
        assert witness.was_open is None
    assert witness.was_open
