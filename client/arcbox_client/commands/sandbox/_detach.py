"""Leaving a process that runs on a terminal, without ending it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable


class KeySequence(click.ParamType[bytes]):
    """Keys with commas between them, each a character or ctrl-LETTER, as bytes; none if it is empty."""

    name = "keys"

    def convert(self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        return b"".join(self._key(key, param, ctx) for key in value.split(",")) if value else b""

    def _key(self, key: str, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        letter = key.lower().removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii():
            self.fail(f"{key!r} is no key: write a character or ctrl-LETTER", param, ctx)
        return bytes([ord(letter) & 0x1F]) if len(key) > 1 else key.encode()


@define
class DetachKeys:
    """Looks for a sequence of keys in what is typed. What may be its beginning is kept back until the next key."""

    _keys: bytes
    _kept: bytes = field(init=False, default=b"")

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What of it is for the process, and whether the sequence is complete: nothing after that is for it."""
        if not self._keys:
            return typed, False
        passed = bytearray()
        for key in typed:
            self._kept += bytes([key])
            while not self._keys.startswith(self._kept):
                passed.append(self._kept[0])
                self._kept = self._kept[1:]
            if self._kept == self._keys:
                self._kept = b""
                return bytes(passed), True
        return bytes(passed), False


def go_on_in_background(back_to_the_shell: Callable[[], None]) -> None:
    """Give the terminal back to the shell, and return in a copy of this process that has none.

    The agent kills what nobody is connected to, so somebody has to stay. The copy has the same connection, with all
    that waits on it, and Trio's loop goes on there: this process must leave both alone, and so ends on the spot.
    """
    sys.stdout.flush()
    settled, settle = os.pipe()
    copy = os.fork()
    if copy:
        os.close(settle)
        os.read(
            settled, 1
        )  # its end: where this process leads the session, the terminal takes all with it who are there
        back_to_the_shell()
        os.write(2, f"\ndetached: process {copy} of this machine keeps it running; to end it, end that\n".encode())
        os._exit(0)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    for descriptor in (nowhere, settled, settle):
        os.close(descriptor)
