"""What happens in a directory of a sandbox, told as it happens, with those below it if that is asked for.

inotify(7) watches single directories. One that is new in the tree is watched as soon as its creation is known; what got
into it before that is found by a look and told then, each entry once.
"""

from __future__ import annotations

import errno
import os
import posixpath
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest import inotify
from arcbox_guest.errors import GuestError, NotFoundError, PreconditionError, UnavailableError
from arcbox_guest.inotify import Inotify
from arcbox_guest.sandboxes.rooted_files import opened, printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from arcbox_guest.inotify import RawEvent

_MASK: Final = (
    inotify.MODIFY
    | inotify.ATTRIB
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.CREATE
    | inotify.DELETE
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.ONLYDIR
    | inotify.EXCL_UNLINK
)

_GONE: Final = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT

_OTHER_HALF: Final = 0.05
"""Seconds to wait for the second half of a rename; the kernel queues both in the same moment."""

_ENDING: Final = 1.0
"""Seconds to wait for the end of a sandbox whose files can't be reached any more."""

_NO_DIRECTORY: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Change(Enum):
    """What happened to a directory entry."""

    CREATED = auto()
    MODIFIED = auto()
    REMOVED = auto()
    RENAMED = auto()


@frozen
class FileEvent:
    """Something that happened."""

    change: Change
    path: str
    """Absolute, in the sandbox."""

    renamed_to: str = ""


@frozen
class _Found:
    """What a look at a tree of directories found."""

    watches: dict[int, str]
    """Directories that were not watched before, by their watch descriptors."""

    entries: list[str]
    """What is in those."""


@define(eq=False)
class Watch:
    """A directory that is watched. Paths in here are relative to it, and empty for itself."""

    _path: str
    """Of the directory, as it was asked for."""

    _recursive: bool
    _call: Callable[..., Awaitable[_Found]]
    """Calls a function with the open root of the sandbox before its other arguments, in a thread."""

    _until_over: Callable[[], Awaitable[None]]
    """Waits for the end of the sandbox."""

    _inotify: Inotify = field(init=False, factory=Inotify)
    _paths: dict[int, str] = field(init=False, factory=dict)
    """What is watched, by its watch descriptor."""

    _new: list[str] = field(init=False, factory=list)
    """Directories that are to be watched as well."""

    _told: set[str] = field(init=False, factory=set)
    """What a look found, and the kernel may tell again."""

    _moved: dict[int, str] = field(init=False, factory=dict)
    """First halves of renames: the old path, by cookie."""

    _over: bool = field(init=False, default=False)

    async def begin(self) -> None:
        """Watch all that is there now.

        Raises:
            GuestError: it can't be watched.
        """
        self._paths.update((await self._call(self._find, "", frozenset())).watches)

    async def receive(self, patience: float) -> Sequence[FileEvent] | None:
        """What has happened since the last call, in order.

        Args:
            patience: seconds after which nothing has happened: the result is empty.

        Returns:
            None when the sandbox has ended.

        Raises:
            NotFoundError: the directory was removed, or moved.
            UnavailableError: so much happened that the kernel lost something.
        """
        raw = self._inotify.read()
        if not raw and not self._over:
            self._told.clear()
            with trio.move_on_after(patience):
                await self._wait()
            raw = self._inotify.read()
        if not raw and self._over:
            return None
        return await self._events(raw)

    async def _wait(self) -> None:
        """Wait until something has happened, or the sandbox has ended."""
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await self._until_over()
                self._over = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await trio.lowlevel.wait_readable(self._inotify.descriptor)
            nursery.cancel_scope.cancel()

    async def _events(self, raw: Sequence[RawEvent]) -> Sequence[FileEvent]:
        events = self._translated(raw)
        if self._moved:
            with trio.move_on_after(_OTHER_HALF):
                await trio.lowlevel.wait_readable(self._inotify.descriptor)
            events += self._translated(self._inotify.read())
            events += [self._moved_out(cookie) for cookie in list(self._moved)]
        while self._new:
            found = await self._look(self._new.pop(0))
            self._paths.update(found.watches)
            self._told.update(found.entries)
            events += [self._event(Change.CREATED, path) for path in found.entries]
        return events

    def _translated(self, raw: Sequence[RawEvent]) -> list[FileEvent]:
        events: list[FileEvent] = []
        for one in raw:
            event = self._translate(one)
            # A file that is written to is modified many times: once in a row is enough.
            if event is not None and not (event.change is Change.MODIFIED and events and events[-1] == event):
                events.append(event)
        return events

    def _translate(self, raw: RawEvent) -> FileEvent | None:
        if raw.mask & inotify.Q_OVERFLOW:
            raise UnavailableError(
                f"events of {self._path} were lost: more happened than the kernel keeps; list it, and watch it again"
            )
        if raw.mask & inotify.IGNORED:
            self._paths.pop(raw.watch, None)
            return None
        directory = self._paths.get(raw.watch)
        if directory == "" and raw.mask & _GONE:
            raise NotFoundError(f"{self._path}: it was removed or moved")
        if directory is None or not raw.name:  # what happens to a directory itself, the one above it tells
            return None
        return self._happened(raw, posixpath.join(directory, raw.name))

    def _happened(self, raw: RawEvent, path: str) -> FileEvent | None:
        is_directory = bool(raw.mask & inotify.ISDIR)
        if raw.mask & inotify.MOVED_FROM:
            self._moved[raw.cookie] = path
            return None
        if raw.mask & inotify.MOVED_TO and raw.cookie in self._moved:
            return self._renamed(self._moved.pop(raw.cookie), path, is_directory=is_directory)
        if raw.mask & (inotify.CREATE | inotify.MOVED_TO):
            return self._created(path, is_directory=is_directory)
        if raw.mask & inotify.DELETE:
            self._told.discard(path)
            return self._event(Change.REMOVED, path)
        return self._event(Change.MODIFIED, path)

    def _created(self, path: str, *, is_directory: bool) -> FileEvent | None:
        if path in self._told:
            self._told.remove(path)
            return None
        if is_directory and self._recursive:
            self._new.append(path)
        return self._event(Change.CREATED, path)

    def _renamed(self, old: str, new: str, *, is_directory: bool) -> FileEvent:
        if is_directory and self._recursive:
            self._paths = {watch: _moved(path, old, new) for watch, path in self._paths.items()}
            self._new = [_moved(path, old, new) for path in self._new]
            if new not in self._paths.values() and new not in self._new:
                self._new.append(new)
        return self._event(Change.RENAMED, old, new)

    def _moved_out(self, cookie: int) -> FileEvent:
        """What was moved, and not to a place in the tree."""
        path = self._moved.pop(cookie)
        for watch in [watch for watch, other in self._paths.items() if _is_below(other, path)]:
            self._inotify.remove(watch)
            del self._paths[watch]
        return self._event(Change.REMOVED, path)

    def _event(self, change: Change, path: str, renamed_to: str = "") -> FileEvent:
        absolute = [printable(posixpath.join(self._path, name)) if name else "" for name in (path, renamed_to)]
        return FileEvent(change, *absolute)

    async def _look(self, path: str) -> _Found:
        refused: GuestError
        try:
            return await self._call(self._find, path, frozenset(self._paths))
        except (PreconditionError, UnavailableError) as error:  # because the sandbox is ending, perhaps
            refused = error
        with trio.move_on_after(_ENDING):
            await self._until_over()
            self._over = True
            return _Found({}, [])
        raise refused

    def _find(self, root: int, path: str, known: frozenset[int]) -> _Found:
        """Watch a directory, and perhaps all below, in a thread; those that have gone meanwhile are none.

        The directories are not kept open: the kernel tells of the end of one only when nobody has it open.
        """
        found = _Found({}, [])
        paths = [path]
        while paths:
            path = paths.pop()
            try:
                below = self._add(root, path, known, found)
            except OSError as error:
                if not path or error.errno not in _NO_DIRECTORY:
                    raise
                continue
            found.entries.extend(name for name, _ in below)
            if self._recursive:
                paths.extend(name for name, is_directory in below if is_directory)
        return found

    def _add(self, root: int, path: str, known: frozenset[int], found: _Found) -> list[tuple[str, bool]]:
        """Watch one directory; what is in it and whether that is a directory, if it was not watched before."""
        flags = os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if path else 0)
        with opened(root, posixpath.join(self._path, path), flags) as directory:
            watch = self._inotify.add(directory, _MASK)
            if watch in known:
                return []
            found.watches[watch] = path
            with os.scandir(directory) as entries:
                return [(posixpath.join(path, e.name), e.is_dir(follow_symlinks=False)) for e in entries]


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _moved(path: str, old: str, new: str) -> str:
    """Where a path is after a rename of what it is, or is below of."""
    return new + path.removeprefix(old) if _is_below(path, old) else path
