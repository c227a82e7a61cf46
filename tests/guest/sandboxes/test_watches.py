"""Watches, on real directories: what is told, in which order, and what is said of what was lost."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define

from arcbox_guest.errors import NotFoundError, UnavailableError
from arcbox_guest.inotify import Q_OVERFLOW, Inotify, RawEvent
from arcbox_guest.sandboxes.files import SandboxFiles
from arcbox_guest.sandboxes.model import Action, Spec
from arcbox_guest.sandboxes.testing import FakeDriver, fake_manager
from arcbox_guest.sandboxes.watches import Change

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from arcbox_guest.sandboxes.manager import SandboxManager
    from arcbox_guest.sandboxes.watches import FileEvent, Watch

CREATED, MODIFIED, REMOVED, RENAMED = Change


@define(eq=False)
class Watched:
    """A directory `/w` of a sandbox."""

    top: Path
    files: SandboxFiles
    manager: SandboxManager

    async def watch(self, *, recursive: bool = False) -> Watch:
        return await self.files.watch("box", "/w", recursive=recursive)


@pytest.fixture
async def watched(in_memory: Path, nursery: trio.Nursery) -> AsyncIterator[Watched]:
    (in_memory / "w").mkdir()
    manager = fake_manager(FakeDriver(files=in_memory))
    nursery.start_soon(manager.run)
    await manager.opened()
    with manager.subscribe("box", Action.READY) as happened:
        await manager.create(Spec(id="box"))
        await anext(happened)
    yield Watched(in_memory / "w", SandboxFiles(manager), manager)
    nursery.cancel_scope.cancel()


async def told(watch: Watch, count: int) -> list[tuple[Change, str, str]]:
    """The next events, at least so many."""
    events: list[FileEvent] = []
    while len(events) < count:
        batch = await watch.receive(30)
        assert batch, f"only {events}"
        events += batch
    return [(event.change, event.path, event.renamed_to) for event in events]


async def test_what_happens_in_a_directory_is_told_in_order(watched: Watched) -> None:
    (watched.top / "before").touch()
    watch = await watched.watch()
    (watched.top / "a").write_text("1")
    (watched.top / "a").rename(watched.top / "b")
    (watched.top / "b").unlink()
    assert await told(watch, 4) == [
        (CREATED, "/w/a", ""),
        (MODIFIED, "/w/a", ""),
        (RENAMED, "/w/a", "/w/b"),
        (REMOVED, "/w/b", ""),
    ]
    assert list(await watch.receive(0) or ()) == []


async def test_what_is_moved_in_is_created_and_what_is_moved_out_is_removed(watched: Watched) -> None:
    outside = watched.top.parent / "file"
    outside.touch()
    watch = await watched.watch()
    outside.rename(watched.top / "in")
    (watched.top / "in").rename(outside)
    assert await told(watch, 2) == [(CREATED, "/w/in", ""), (REMOVED, "/w/in", "")]


async def test_directories_below_are_watched_only_if_that_is_asked_for(watched: Watched) -> None:
    (watched.top / "sub").mkdir()
    flat, deep = await watched.watch(), await watched.watch(recursive=True)
    (watched.top / "sub" / "file").touch()
    (watched.top / "last").touch()
    assert (CREATED, "/w/sub/file", "") in await told(deep, 2)
    assert {path for _, path, _ in await told(flat, 1)} == {"/w/last"}


async def test_what_gets_into_new_directories_is_told_once(watched: Watched) -> None:
    watch = await watched.watch(recursive=True)
    expected = set()
    for number in range(50):
        directory = watched.top / f"d{number}" / "sub"
        directory.mkdir(parents=True)
        (directory / "file").touch()
        expected |= {f"/w/d{number}", f"/w/d{number}/sub", f"/w/d{number}/sub/file"}
        if number % 7 == 0:
            await trio.lowlevel.checkpoint()
    (watched.top / "last").touch()
    created: list[str] = []
    while "/w/last" not in created or len(created) <= len(expected):
        created += [path for change, path, _ in await told(watch, 1) if change is CREATED]
    assert sorted(created) == sorted({*expected, "/w/last"})


async def test_a_directory_that_is_renamed_is_watched_by_its_new_name(watched: Watched) -> None:
    (watched.top / "old" / "sub").mkdir(parents=True)
    watch = await watched.watch(recursive=True)
    (watched.top / "old").rename(watched.top / "new")
    (watched.top / "new" / "sub" / "file").touch()
    events = await told(watch, 2)
    assert events[0] == (RENAMED, "/w/old", "/w/new")
    assert (CREATED, "/w/new/sub/file", "") in events


async def test_a_directory_that_is_moved_out_is_watched_no_longer(watched: Watched) -> None:
    (watched.top / "dir").mkdir()
    watch = await watched.watch(recursive=True)
    moved = (watched.top / "dir").rename(watched.top.parent / "moved")
    assert await told(watch, 1) == [(REMOVED, "/w/dir", "")]
    (moved / "file").touch()
    (watched.top / "last").touch()
    assert {path for _, path, _ in await told(watch, 1)} == {"/w/last"}


async def test_ten_thousand_creations_are_all_told(watched: Watched) -> None:
    watch = await watched.watch()
    created = [f"/w/{number}" for number in range(10_000)]
    code = "import os; [os.mknod(str(number)) for number in range(10_000)]"
    seen: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, [sys.executable, "-S", "-c", code], cwd=watched.top))
        while len(seen) < len(created):
            seen += [path for change, path, _ in await told(watch, 1) if change is CREATED]
    assert seen == created


async def test_events_that_the_kernel_lost_are_an_error(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = await watched.watch()
    monkeypatch.setattr(Inotify, "read", lambda _: [RawEvent(-1, Q_OVERFLOW, 0, "")])
    with pytest.raises(UnavailableError, match="were lost"):
        await watch.receive(1)


async def test_the_end_of_the_directory_is_an_error(watched: Watched) -> None:
    watch = await watched.watch()
    watched.top.rmdir()
    with pytest.raises(NotFoundError, match="removed or moved"):
        await watch.receive(30)


async def test_the_end_of_the_sandbox_is_the_end_of_its_watches(watched: Watched) -> None:
    watch = await watched.watch()
    await watched.manager.stop("box", 0)
    assert await watch.receive(30) is None
