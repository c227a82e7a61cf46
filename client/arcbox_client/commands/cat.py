"""arcboxctl cat."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING

import click

from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import show_json

if TYPE_CHECKING:
    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation

_CHUNK = 4 * 1024 * 1024
"""Bytes per request: large enough for full speed, small enough to show progress on a slow line."""


@click.command("cat", short_help="Write a file of the guest to stdout.")
@click.argument("path")
@click.option("--offset", type=click.IntRange(0, 2**64 - 1), default=0, help="Bytes to leave out at the start.")
@click.option("--length", type=click.IntRange(0), default=None, help="Bytes to write at most.  [default: all]")
@common_options
@pass_invocation
def command(invocation: Invocation, path: str, offset: int, length: int | None) -> None:
    """Write a file of the guest to stdout, whatever its size, byte for byte.

    The agent reads as much as the file's size says: files in /proc and /sys, which have none, come out empty.

    With --json: one line for each part of it, {"path", "offset", "data" in base64}.
    """

    async def copy(client: AgentClient) -> None:
        position, end = offset, None if length is None else offset + length
        while True:
            wanted = _CHUNK if end is None else min(_CHUNK, end - position)
            data = await client.mmap_read_file(path, offset=position, length=wanted)
            if data:
                _write(data, path, position)
            position += len(data)
            if len(data) < wanted or position == end:
                return

    def _write(data: bytes, path: str, position: int) -> None:
        if invocation.json:
            show_json({"path": path, "offset": position, "data": base64.b64encode(data).decode()})
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    invocation.run(copy)
