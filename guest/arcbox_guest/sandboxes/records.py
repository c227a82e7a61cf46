"""What is known of sandboxes, kept on disk for the next agent: a JSON file for each, and what its command wrote."""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, define, field, resolve_types

from arcbox_guest.sandboxes.model import Sandbox, Spec
from arcbox_guest.sandboxes.output_log import OutputLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cattrs import Converter

log = logging.getLogger(__name__)

_VERSION: Final = 1
"""Of the format; a record with another is not understood."""

_THREADS: Final = 4
"""Records that are written at a time; more of them wait, and nothing else does."""


@define(eq=False)
class Records:
    """A directory of records. What is in it under a record's name is whole, whenever the machine stops."""

    _directory: Path
    _run_sync: Callable[..., Awaitable[None]] | None = field(default=None, kw_only=True)
    """Called with a blocking function and its arguments; in a thread by default."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_THREADS))
    _versions: dict[str, int] = field(init=False, factory=dict)
    """How often each record was written or deleted, by sandbox id."""

    async def load(self) -> list[Sandbox]:
        """All records, the oldest sandbox first. Those that can't be read are logged, and left where they are.

        Raises:
            OSError: the directory can't be read. One that is not there has no records.
        """
        sandboxes: list[Sandbox] = []
        await self._in_thread(self._load, sandboxes)
        return sorted(sandboxes, key=lambda sandbox: sandbox.created_at)

    async def save(self, sandbox: Sandbox, *, durable: bool = True) -> None:
        """Write a record, or replace it. Failure is logged: a sandbox goes on without it.

        Unless it is `durable`, it outlives the agent and not the machine: the disk is not waited for.

        When it is cancelled, a thread that hangs in the file system is left alone. It may go on later, and does then
        not replace what was written after it.
        """
        version = self._next_version(sandbox.id)
        try:
            await self._in_thread(
                write, self._path(sandbox.id), sandbox, durable, lambda: self._versions[sandbox.id] == version
            )
        except OSError as error:
            log.warning("record not saved", extra={"sandbox": sandbox.id, "reason": str(error)})

    def output(self, sandbox_id: str) -> OutputLog:
        """The log of a sandbox's initial command, which lies beside its record, and goes with it."""
        return OutputLog(self._log_path(sandbox_id), self._in_thread)

    async def delete(self, sandbox_id: str) -> None:
        """Remove a record with its log, if there are such. Failure is logged."""
        self._next_version(sandbox_id)
        try:
            await self._in_thread(self._log_path(sandbox_id).unlink, True)  # missing_ok
            await self._in_thread(self._path(sandbox_id).unlink, True)
        except OSError as error:
            log.warning("record not deleted", extra={"sandbox": sandbox_id, "reason": str(error)})

    def _next_version(self, sandbox_id: str) -> int:
        version = self._versions[sandbox_id] = self._versions.get(sandbox_id, 0) + 1
        return version

    def _path(self, sandbox_id: str) -> Path:
        return self._directory / f"{sandbox_id}.json"

    def _log_path(self, sandbox_id: str) -> Path:
        return self._directory / f"{sandbox_id}.log"

    async def _in_thread(self, function: Callable[..., object], *args: object) -> None:
        if self._run_sync is not None:
            await self._run_sync(function, *args)
        else:
            await trio.to_thread.run_sync(function, *args, limiter=self._limiter, abandon_on_cancel=True)

    def _load(self, sandboxes: list[Sandbox]) -> None:
        for path in self._directory.iterdir() if self._directory.exists() else ():
            if _is_left_over(path):
                with suppress(OSError):
                    path.unlink()
            elif path.suffix == ".json":
                try:
                    sandboxes.append(read(path))
                except (OSError, ValueError) as error:
                    log.error("record can't be read", extra={"path": str(path), "reason": str(error)})  # noqa: TRY400  the reason says all


def _is_left_over(path: Path) -> bool:
    """Whether a file is from an agent that was killed: while it wrote, or before there was a record to the log."""
    return path.suffix == ".tmp" or (path.suffix == ".log" and not path.with_suffix(".json").exists())


def read(path: Path) -> Sandbox:
    """The record in a file.

    Raises:
        OSError: it can't be read.
        ValueError: it is no record, or one of another sandbox.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        sandbox = decode(file.read())
    if sandbox.id != path.stem:
        raise ValueError(f"it is the record of {sandbox.id!r}")
    return sandbox


def write(path: Path, sandbox: Sandbox, durable: bool, is_current: Callable[[], bool]) -> None:  # noqa: FBT001  called by a thread
    """Replace a record. See `replace_file`."""
    replace_file(path, encode(sandbox), is_current, durable=durable)


def replace_file(
    path: Path, data: bytes, is_current: Callable[[], bool] = lambda: True, *, durable: bool = True
) -> None:
    """Replace a file, so that at no time there is half of it. Its directory is made if it is not there.

    Args:
        path: the file.
        data: what to write.
        is_current: asked last; False leaves the file as it is.
        durable: whether the disk is waited for.

    Raises:
        OSError: it can't be written. What was there before still is.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A new name: whatever lies there under an old one, a FIFO say, could make open(2) wait.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if is_current():
            temporary.rename(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def encode(sandbox: Sandbox) -> bytes:
    """A record as it is on disk."""
    return json.dumps({"version": _VERSION, "sandbox": asdict(sandbox)}, indent=1).encode()


def decode(data: bytes) -> Sandbox:
    """The record in the bytes of a file.

    Raises:
        ValueError: they are none.
    """
    document = json.loads(data)
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise ValueError(f"it is no record of version {_VERSION}")
    converter = spec_converter()
    try:
        return converter.structure(document.get("sandbox"), Sandbox)
    except Exception as error:  # cattrs raises groups of whatever the parts raised
        raise ValueError(f"it does not describe a sandbox: {error!r}") from error


@cache
def spec_converter() -> Converter:
    from cattrs import Converter  # noqa: PLC0415  heavy, and not needed where there are no records

    for kind in (Spec, Sandbox):
        resolve_types(kind, localns={"Mapping": Mapping})  # which the model itself imports for type checkers only
    return Converter()
