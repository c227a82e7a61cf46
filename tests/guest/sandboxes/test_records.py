"""Records on a real disk: whole or not there, and bad ones a nuisance at most."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from arcbox_guest.sandboxes.model import BindMount, ResourceLimits, Sandbox, Spec, State
from arcbox_guest.sandboxes.records import Records, decode, encode

TEXT = st.text(max_size=10)
SPECS = st.builds(
    Spec,
    id=TEXT,
    rootfs=TEXT,
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    limits=st.builds(ResourceLimits, vcpus=st.integers(0, 64), memory_mib=st.integers(0, 2**40)),
    cmd=st.lists(TEXT, max_size=3).map(tuple),
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    working_dir=TEXT,
    user=TEXT,
    mounts=st.lists(st.builds(BindMount, source=TEXT, target=TEXT, readonly=st.booleans()), max_size=2).map(tuple),
    ttl=st.floats(0, 1e9),
)
TIMES = st.floats(0, 1e12)
SANDBOXES = st.builds(
    Sandbox,
    spec=SPECS,
    state=st.sampled_from(State),
    created_at=TIMES,
    ready_at=TIMES,
    last_exited_at=TIMES,
    last_exit_code=st.integers(-255, 255),
    error=TEXT,
)
WEB = Sandbox(spec=Spec(id="web", cmd=("httpd", "-f"), labels={"tier": "front"}), state=State.READY, created_at=2.0)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@given(SANDBOXES)
def test_a_record_tells_all_that_was_known(sandbox: Sandbox) -> None:
    assert decode(encode(sandbox)) == sandbox


@given(st.binary() | st.recursive(st.none() | st.integers() | TEXT, st.lists).map(lambda x: json.dumps(x).encode()))
def test_garbage_is_no_record_and_says_so(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)


@pytest.mark.parametrize("missing", ["spec", "state", "created_at"])
def test_a_record_without_what_it_must_have_is_none(missing: str) -> None:
    document = json.loads(encode(WEB))
    del document["sandbox"][missing]
    with pytest.raises(ValueError, match="does not describe a sandbox"):
        decode(json.dumps(document).encode())


def test_what_a_later_agent_adds_does_not_matter() -> None:
    document = json.loads(encode(WEB))
    document["sandbox"]["address"] = "172.20.0.2"
    assert decode(json.dumps(document).encode()) == WEB


async def test_records_come_back_the_oldest_first(tmp_path: Path) -> None:
    records = Records(tmp_path / "not" / "there" / "yet")
    assert await records.load() == []
    other = evolve(WEB, spec=Spec(id="db"), created_at=1.0)
    for sandbox in (WEB, other):
        await records.save(sandbox)
    assert await Records(tmp_path / "not" / "there" / "yet").load() == [other, WEB]


async def test_records_are_for_nobody_else_to_read(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    await Records(directory).save(WEB)
    assert directory.stat().st_mode & 0o777 == 0o700


async def test_saving_again_replaces_and_deleting_again_is_fine(tmp_path: Path) -> None:
    records = Records(tmp_path)
    await records.save(WEB)
    await records.save(evolve(WEB, state=State.STOPPED))
    assert [sandbox.state for sandbox in await records.load()] == [State.STOPPED]
    await records.delete("web")
    await records.delete("web")
    assert files(tmp_path) == []


async def test_a_record_that_can_not_be_read_is_reported_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records(tmp_path)
    await records.save(WEB)
    (tmp_path / "half.json").write_bytes(encode(WEB)[:50])
    (tmp_path / "other.json").write_bytes(encode(WEB))
    (tmp_path / "directory.json").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert await records.load() == [WEB]
    reported = {record.__dict__["path"].rpartition("/")[2] for record in caplog.records}
    assert reported == {"half.json", "other.json", "directory.json"}
    assert files(tmp_path) == ["directory.json", "half.json", "notes.txt", "other.json", "web.json"]


async def test_what_a_killed_agent_had_half_written_goes_away(tmp_path: Path) -> None:
    (tmp_path / ".web.json.tmp").write_bytes(encode(WEB)[:50])
    assert await Records(tmp_path).load() == []
    assert files(tmp_path) == []


async def test_a_full_disk_costs_the_new_record_and_not_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    records = Records(tmp_path)
    await records.save(WEB)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        await records.save(evolve(WEB, state=State.FAILED))
    assert [record.message for record in caplog.records] == ["record not saved"]
    assert "No space left" in caplog.records[0].__dict__["reason"]
    assert files(tmp_path) == ["web.json"]
    assert await records.load() == [WEB]


async def test_a_directory_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        await Records(tmp_path / "records").load()


async def test_where_there_are_no_records_none_is_made_by_looking_for_them(tmp_path: Path) -> None:
    assert await Records(tmp_path / "records").load() == []
    assert files(tmp_path) == []


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_the_log_of_a_command_goes_with_its_record(tmp_path: Path) -> None:
    records = Records(tmp_path)
    await records.save(WEB)
    await records.output("web").write(b"said")
    assert names(tmp_path) == {"web.json", "web.log"}
    await records.delete("web")
    assert names(tmp_path) == set()


async def test_a_log_outlives_its_agent_and_not_its_record(tmp_path: Path) -> None:
    former = Records(tmp_path)
    await former.save(WEB)
    for sandbox_id in ("web", "web.2", "a.json"):
        await former.output(sandbox_id).write(b"said")
    assert await Records(tmp_path).load() == [WEB]
    assert names(tmp_path) == {"web.json", "web.log"}


async def test_a_fifo_in_the_place_of_any_file_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (".web.json.tmp", "web.json", "web.log", "db.json"):
        os.mkfifo(tmp_path / name)
    records = Records(tmp_path)
    with trio.fail_after(20):
        await records.save(WEB)
        await records.output("web").write(b"said")
        assert await Records(tmp_path).load() == [WEB]
    assert [record.message for record in caplog.records] == ["output not kept", "record can't be read"]


async def test_a_record_whose_storage_hangs_can_be_given_up_and_never_replaces_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_works, first_hangs, first_is_over = threading.Event(), threading.Event(), threading.Event()
    unlink = Path.unlink

    def hang(_descriptor: int) -> None:
        if not first_hangs.is_set():
            first_hangs.set()
            storage_works.wait(20)

    def tell_of_the_end(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if storage_works.is_set():
            first_is_over.set()

    monkeypatch.setattr(os, "fsync", hang)
    monkeypatch.setattr(Path, "unlink", tell_of_the_end)
    records = Records(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(records.save, WEB)
        assert await trio.to_thread.run_sync(first_hangs.wait, 20)
        nursery.cancel_scope.cancel()
    await records.save(evolve(WEB, state=State.STOPPED))
    storage_works.set()
    assert await trio.to_thread.run_sync(first_is_over.wait, 20)
    assert [sandbox.state for sandbox in await records.load()] == [State.STOPPED]
    assert files(tmp_path) == ["web.json"]
