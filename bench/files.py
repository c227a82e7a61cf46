"""MmapReadFile against a plain `sendfile` of the same bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from arcbox_protocol import MessageType, arcbox_v1, encode_frame
from bench.client import UnexpectedReplyError, receive_frame, transfer
from bench.figures import Target, compare
from bench.rounds import interleave

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

_MEBIBYTE = 1 << 20
_TARGETS = {1: Target("ratio", "≥", 0.5), 32: Target("ratio", "≥", 0.6)}
_SENDFILE = "sendfile"


def measure(stage: Stage) -> list[Figure]:
    """Megabytes (10^6 bytes) per second out of files that are in the page cache."""
    agent = stage.agent()
    return [_measure_size(stage, agent, mebibytes, target) for mebibytes, target in _TARGETS.items()]


def _measure_size(stage: Stage, agent: Server, mebibytes: int, target: Target) -> Figure:
    size = mebibytes * _MEBIBYTE
    file = stage.directory / f"{mebibytes}-mib"
    file.write_bytes(os.urandom(size))
    contenders = {
        "agent": _mmap_read_file(stage, agent, file),
        _SENDFILE: _sendfile(stage, stage.peer("sendfile", str(file)), size),
    }
    samples = interleave(contenders, stage.rounds)
    rates = {name: taken.per_second().scaled(size / 1e6) for name, taken in samples.items()}
    return compare(f"MmapReadFile, {mebibytes} MiB", "MB/s", rates["agent"], rates[_SENDFILE], target)


def _mmap_read_file(stage: Stage, server: Server, file: Path) -> Callable[[], float]:
    expected = file.read_bytes()
    message = arcbox_v1.MmapReadFileRequest(path=str(file), length=len(expected))
    request = encode_frame(MessageType.MmapReadFileRequest, "4bf92f3577b34da6", message.SerializeToString())
    connection = stage.connect(server)
    connection.sendall(request)
    reply = receive_frame(connection, 2 * len(expected))
    if reply.type != MessageType.MmapReadFileResponse:
        raise UnexpectedReplyError(f"{file.name} was answered with {reply.payload[:200]!r}")
    if arcbox_v1.MmapReadFileResponse.FromString(reply.payload).data != expected:
        raise UnexpectedReplyError(f"{file.name} came back with other bytes")
    return _transfers(stage, connection, request, len(encode_frame(*reply)))


def _sendfile(stage: Stage, server: Server, size: int) -> Callable[[], float]:
    return _transfers(stage, stage.connect(server), b"x", size)


def _transfers(stage: Stage, connection: socket.socket, request: bytes, reply_size: int) -> Callable[[], float]:
    buffer = bytearray(256 * 1024)

    def transfers(count: int) -> None:
        for _ in range(count):
            transfer(connection, request, reply_size, buffer)

    return stage.seconds_each(transfers)
