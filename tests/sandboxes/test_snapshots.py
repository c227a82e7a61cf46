"""Snapshots, as a host sees them: a real agent, real sandboxes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from arcbox_client.errors import BadRequestError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine


RESTORED = int(os.environ.get("ARCBOX_TEST_RESTORED", "8"))
"""Sandboxes made from one snapshot."""

LARGE = int(os.environ.get("ARCBOX_TEST_SNAPSHOT_MIB", "8"))
"""MiB of a file in it; beside it are ten times as many small files."""


async def test_a_sandbox_is_restored_as_often_as_one_likes(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "origin", labels={"a": "1"}, env={"GREETING": "hello"})
    await client.run("origin", ["sh", "-c", "echo $GREETING > /said"])
    snapshot = await client.checkpoint("origin", name="first", labels={"kind": "test"})
    await client.run("origin", ["sh", "-c", "echo changed > /said"])
    for name in ("one", "two"):
        assert (await client.restore(snapshot.snapshot_id, name, labels={"b": "2"})).id == name
        completed = await client.run(name, ["sh", "-c", "cat /said; echo $GREETING; echo mine > /said"])
        assert completed.stdout == b"hello\nhello\n"
        info = await client.sandbox_inspect(name)
        assert (info.state, dict(info.labels)) == ("ready", {"a": "1", "b": "2"})
    assert (await client.run("origin", ["cat", "/said"])).stdout == b"changed\n"

    (found,) = (await client.list_snapshots("origin", labels={"kind": "test"})).snapshots
    assert (found.id, found.name, found.sandbox_id) == (snapshot.snapshot_id, "first", "origin")
    age = datetime.now(UTC) - datetime.fromisoformat(found.created_at)
    assert 0 <= age.total_seconds() < 60


async def test_snapshots_outlive_their_origin_and_the_agent_and_go_when_they_are_deleted(machine: Machine) -> None:
    with machine.running():
        async with machine.client() as client:
            await machine.ready(client, "origin")
            await client.run("origin", ["sh", "-c", "echo kept > /kept"])
            snapshot = await client.checkpoint("origin")
            await client.sandbox_remove("origin", force=True)
    with machine.running():
        async with machine.client() as client:
            restored = await client.restore(snapshot.snapshot_id)
            await client.delete_snapshot(snapshot.snapshot_id)
            assert (await client.run(restored.id, ["cat", "/kept"])).stdout == b"kept\n"
            with pytest.raises(NotFoundError):
                await client.restore(snapshot.snapshot_id)
            await client.sandbox_remove(restored.id, force=True)
    with machine.running():  # which sweeps what nobody has
        async with machine.client() as client:
            assert list((await client.list_snapshots()).snapshots) == []
            await machine.ready(client, "box")
            assert len(list((machine.directory / "sandboxes/layers").iterdir())) == 1


async def test_many_restored_from_one_are_independent_of_each_other_and_of_it(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "origin", memory_mib=256)
    write = f"mkdir /x && cd /x && dd if=/dev/urandom of=large bs=1M count={LARGE} status=none"
    write += f" && seq {LARGE * 10} | awk '{{ name = $1; print $1 * 7 > name; close(name) }}'"
    checksum = f"cd /x && cat large $(seq {LARGE * 10}) | sha256sum"
    assert (await client.run("origin", ["sh", "-c", write])).exit_code == 0
    before = (await client.run("origin", ["sh", "-c", checksum])).stdout
    snapshot = await client.checkpoint("origin")
    boxes = ["origin", *(f"box-{number}" for number in range(RESTORED))]
    for name in boxes[1:]:
        await client.restore(snapshot.snapshot_id, name)
    for name in boxes:  # each changes, removes and adds something
        change = f"cd /x && echo {name} >> 3 && rm 1 && hostname > 2 && echo {name} > own"
        assert (await client.run(name, ["sh", "-c", change])).exit_code == 0
    for name in boxes:
        shown = await client.run(name, ["sh", "-c", "cd /x && cat 2 3 own; ls 1"])
        assert shown.stdout.decode() == f"{name}\n21\n{name}\n{name}\n"
        assert b"No such file" in shown.stderr
    await client.restore(snapshot.snapshot_id, "last")
    assert (await client.run("last", ["sh", "-c", checksum])).stdout == before


async def test_what_can_not_be_kept_or_restored_is_refused(machine: Machine, client: AgentClient) -> None:
    with pytest.raises(NotFoundError):
        await client.checkpoint("nobody")
    with pytest.raises(NotFoundError):
        await client.delete_snapshot("none")
    await machine.ready(client, "box")
    async with client.sandbox_exec("box", ["sleep", "1000"]):
        await machine.until(client, "box", "running")
        with pytest.raises(ConflictError):
            await client.checkpoint("box")
    await machine.until(client, "box", "ready")
    await client.run("box", ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
    with pytest.raises(ConflictError, match="left behind"):
        await client.checkpoint("box")


async def test_a_snapshot_whose_root_file_system_is_gone_is_not_restored_and_leaves_nothing(
    machine: Machine, client: AgentClient
) -> None:
    rootfs = machine.directory / "other"
    rootfs.symlink_to(machine.rootfs)
    await machine.ready(client, "origin", rootfs=str(rootfs))
    snapshot = await client.checkpoint("origin")
    rootfs.unlink()
    with pytest.raises(BadRequestError, match="other"):
        await client.restore(snapshot.snapshot_id, "box")
    assert [box.id for box in (await client.sandbox_list()).sandboxes] == ["origin"]
