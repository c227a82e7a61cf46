"""GetSystemInfo against an echo: what reading the machine's state costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_protocol import MessageType, arcbox_v1, encode_frame
from bench.client import PING, Exchange, UnexpectedReplyError, receive_frame
from bench.figures import Target, compare
from bench.pings import BLOCKING
from bench.rounds import interleave

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

_REQUEST = encode_frame(MessageType.GetSystemInfoRequest, "4bf92f3577b34da6")


def measure(stage: Stage) -> list[Figure]:
    """One reply after the other."""
    echo = stage.connect(stage.peer("blocking_echo"))
    ping = Exchange.learn(echo, PING)
    contenders = {
        "agent": _system_info(stage, stage.agent()),
        BLOCKING: stage.seconds_each(lambda count: ping.one_by_one(echo, count)),
    }
    samples = {name: taken.scaled(1e6) for name, taken in interleave(contenders, stage.rounds).items()}
    target = Target("value", "<", 500)
    return [compare("GetSystemInfo", "µs", samples["agent"], samples[BLOCKING], target)]


def _system_info(stage: Stage, server: Server) -> Callable[[], float]:
    """The replies differ, by the load or the memory that is free: each is read as what it is."""
    connection = stage.connect(server)
    connection.sendall(_REQUEST)
    reply = receive_frame(connection)
    if reply.type != MessageType.GetSystemInfoResponse or not arcbox_v1.SystemInfo.FromString(reply.payload).arch:
        raise UnexpectedReplyError(f"GetSystemInfo was answered with {reply!r}")

    def ask(count: int) -> None:
        for _ in range(count):
            connection.sendall(_REQUEST)
            receive_frame(connection)

    return stage.seconds_each(ask)
