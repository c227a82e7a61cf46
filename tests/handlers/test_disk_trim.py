"""The words of DiskTrim, on fakes; what it does to real disks is in test_disk_trim_for_real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.disks import Disks, TrimResult
from arcbox_guest.errors import GuestError
from arcbox_guest.testing import fake_guest
from arcbox_handlers import Context, error_reply
from arcbox_handlers.disks import DiskTrim
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from collections.abc import Sequence

GOOD = TrimResult("/var/lib/docker", 4096)
EMPTY = TrimResult("/run/arcbox/data", 0)
BAD = TrimResult("/var/lib/containerd", error="discard not supported")


async def trim(monkeypatch: pytest.MonkeyPatch, results: Sequence[TrimResult]) -> str:
    """The result, when the disks have these."""

    async def trim(_disks: Disks) -> Sequence[TrimResult]:
        await trio.lowlevel.checkpoint()
        return results

    monkeypatch.setattr(Disks, "trim", trim)
    return (await DiskTrim(arcbox_v1.DiskTrimRequest())(Context(guest=fake_guest(), version="0"))).result


async def test_each_mount_is_told_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await trim(monkeypatch, [GOOD]) == "/var/lib/docker: 4096 bytes trimmed"


async def test_the_parts_are_joined_by_semicolons(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (
        "/var/lib/docker: 4096 bytes trimmed; /var/lib/containerd: discard not supported;"
        " /run/arcbox/data: 0 bytes trimmed"
    )
    assert await trim(monkeypatch, [GOOD, BAD, EMPTY]) == expected


async def test_without_a_mount_there_is_no_data_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await trim(monkeypatch, []) == "no data volume mounted"


@pytest.mark.parametrize("count", [1, 3])
async def test_when_all_of_them_fail_it_is_error_500_with_the_parts(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with pytest.raises(GuestError) as failure:
        await trim(monkeypatch, [BAD] * count)
    reply = error_reply(failure.value)
    assert reply is not None
    assert reply.code == 500
    assert reply.message == "; ".join(["/var/lib/containerd: discard not supported"] * count)
