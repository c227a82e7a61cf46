"""arcboxctl sandbox cp: files and directories, into a sandbox and out of it."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from posixpath import basename, join
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

import click
import trio
from attrs import define, field

from arcbox_client._file_requests import CHUNK
from arcbox_client.commands._invocation import common_options, pass_invocation
from arcbox_client.commands._output import show_json
from arcbox_client.errors import AgentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client.client import AgentClient
    from arcbox_client.commands._invocation import Invocation

_PERMISSIONS: Final = 0o777


@click.command("cp", short_help="Copy files into a sandbox, or out of it.")
@click.argument("source")
@click.argument("target")
@common_options
@pass_invocation
def cp(invocation: Invocation, source: str, target: str) -> None:
    """Copy a file or directory: ID:PATH is in a sandbox, PATH on this machine, and - is stdin or stdout.

    Into a directory that exists, it is copied under its own name. With --json: {"files", "bytes"}.
    """
    from_sandbox, to_sandbox = _in_sandbox(source), _in_sandbox(target)
    if (from_sandbox is None) == (to_sandbox is None):
        raise click.UsageError("one of the two is ID:PATH, and the other is not")

    async def copy(client: AgentClient) -> None:
        with _progress(quiet=invocation.json or "-" in {source, target}) as progress:
            try:
                if to_sandbox is not None:
                    await _Upload(client, to_sandbox[0], progress).copy(source, to_sandbox[1])
                elif from_sandbox is not None:
                    await _Download(client, from_sandbox[0], progress).copy(from_sandbox[1], target)
            except OSError as error:
                if isinstance(error, AgentError) or error.filename is None:
                    raise
                raise click.ClickException(f"{error.strerror}: {error.filename}") from error
        if invocation.json:
            show_json({"files": progress.files, "bytes": progress.bytes})
        elif progress.skipped:
            raise click.ClickException(f"not copied: {', '.join(progress.skipped)}: no files or directories")

    invocation.run(copy)


def _in_sandbox(text: str) -> tuple[str, str] | None:
    """The id and path of what is in a sandbox; None for a path of this machine: ./a:b is one."""
    sandbox_id, colon, path = text.partition(":")
    return (sandbox_id, path or "/") if colon and sandbox_id and "/" not in sandbox_id else None


class _Bar(Protocol):
    def begin(self, name: str, size: int | None) -> None: ...

    def advance(self, size: int) -> None: ...


@define
class _Progress:
    """What was copied, and a bar that shows it to people."""

    _bar: _Bar | None
    files: int = field(init=False, default=0)
    bytes: int = field(init=False, default=0)
    skipped: list[str] = field(init=False, factory=list)

    def begin(self, name: str, size: int | None) -> None:
        self.files += 1
        if self._bar is not None:
            self._bar.begin(name, size)

    def advance(self, size: int) -> None:
        self.bytes += size
        if self._bar is not None:
            self._bar.advance(size)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[_Progress]:
    if quiet or not sys.stderr.isatty():
        yield _Progress(None)
        return
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("")

        class Bar:
            def begin(self, name: str, size: int | None) -> None:
                shown.reset(task, description=name, total=size)

            def advance(self, size: int) -> None:
                shown.advance(task, size)

        yield _Progress(Bar())


@define
class _LocalPieces:
    """A file of this machine in pieces, of which each counts as it is taken."""

    _file: BinaryIO
    _progress: _Progress

    def __aiter__(self) -> _LocalPieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await trio.to_thread.run_sync(self._file.read, CHUNK, abandon_on_cancel=True)
        if not piece:
            raise StopAsyncIteration
        self._progress.advance(len(piece))
        return piece


@define
class _Upload:
    _client: AgentClient
    _sandbox_id: str
    _progress: _Progress

    async def copy(self, source: str, target: str) -> None:
        if source == "-":
            await self._write(sys.stdin.buffer, target, "stdin", None, 0o644)
            return
        if await self._is_directory(target):
            target = join(target, Path(source).resolve().name)
        await self._tree(Path(source), target)

    async def _is_directory(self, path: str) -> bool:
        try:
            info = await self._client.file_stat(self._sandbox_id, path)
        except NotFoundError:
            return False
        return info.kind == "directory"

    async def _tree(self, source: Path, target: str) -> None:
        facts = source.stat()  # what a link leads to
        if stat.S_ISDIR(facts.st_mode):
            await self._client.file_mkdir(self._sandbox_id, target, mode=facts.st_mode & _PERMISSIONS)
            for entry in sorted(source.iterdir()):
                await self._tree(entry, join(target, entry.name))
        elif stat.S_ISREG(facts.st_mode):
            with source.open("rb") as file:
                await self._write(file, target, source.name, facts.st_size, facts.st_mode & _PERMISSIONS)
        else:
            self._progress.skipped.append(str(source))

    async def _write(self, file: BinaryIO, target: str, name: str, size: int | None, mode: int) -> None:
        self._progress.begin(name, size)
        await self._client.file_write(self._sandbox_id, target, _LocalPieces(file, self._progress), mode=mode)


@define
class _Download:
    """What a sandbox says is not trusted: names lead nowhere else, and no link is followed that came from it."""

    _client: AgentClient
    _sandbox_id: str
    _progress: _Progress
    _links: list[tuple[str, Path]] = field(init=False, factory=list)

    async def copy(self, source: str, target: str) -> None:
        if target == "-":
            await self._read(source, sys.stdout.fileno(), 0)
            return
        path = Path(target)
        if path.is_dir():
            path /= basename(source.rstrip("/")) or self._sandbox_id
        await self._tree(source, path)
        for pointed_at, link in self._links:
            link.symlink_to(pointed_at)

    async def _tree(self, source: str, target: Path) -> None:
        info = await self._client.file_stat(self._sandbox_id, source)
        if info.kind == "directory":
            if target.is_symlink():
                raise click.ClickException(f"{target} is a link: nothing is written through it")
            target.mkdir(exist_ok=True)
            for entry in await self._client.file_list(self._sandbox_id, source):
                if entry.name in {"", ".", ".."} or "/" in entry.name or "\0" in entry.name:
                    raise click.ClickException(f"the sandbox has a file with the name {entry.name!r}")
                await self._tree(join(source, entry.name), target / entry.name)
        elif info.kind == "file":
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(target, flags, info.mode & _PERMISSIONS)
            try:
                await self._read(source, descriptor, info.size)
            finally:
                os.close(descriptor)
        elif info.kind == "symlink":
            self._progress.begin(info.name, 0)
            self._links.append((info.symlink_target, target))
        else:
            self._progress.skipped.append(source)

    async def _read(self, source: str, descriptor: int, size: int) -> None:
        self._progress.begin(basename(source), size or None)
        async with self._client.file_reader(self._sandbox_id, source) as reader:
            async for data in reader:
                left = memoryview(data)
                while left:
                    left = left[await trio.to_thread.run_sync(os.write, descriptor, left) :]
                self._progress.advance(len(data))
