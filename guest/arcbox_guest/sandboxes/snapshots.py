"""What is known of snapshots, kept on disk in snapshots/ID/snapshot.json: without that file there is no snapshot."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, asdict, define, evolve, field, frozen, resolve_types

from arcbox_guest.errors import GuestError, NotFoundError
from arcbox_guest.sandboxes.model import Spec
from arcbox_guest.sandboxes.records import replace_file, spec_converter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_VERSION: Final = 1
_FILE: Final = "snapshot.json"


@frozen(kw_only=True)
class Snapshot:
    """The files of a sandbox at one moment."""

    id: str
    sandbox_id: str
    """Of its origin."""

    name: str = ""
    labels: Mapping[str, str] = Factory(dict)
    created_at: float
    """Unix seconds."""

    spec: Spec
    """What a sandbox made from it shall be, its layers among it."""


@define(eq=False)
class Snapshots:
    """All snapshots of a directory. They are known once `load` has returned."""

    directory: Path = Path()
    """Empty keeps them in memory only."""

    _known: dict[str, Snapshot] = field(init=False, factory=dict)
    _changing: trio.Lock = field(init=False, factory=trio.Lock)
    """Held while one that is there is changed or deleted."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(2))

    async def load(self) -> None:
        """Read them all. Those that can't be read are logged, and left where they are."""
        await self._call(self._load)

    def get(self, snapshot_id: str) -> Snapshot:
        """Raises NotFoundError: there is none with that id."""
        if snapshot_id not in self._known:
            raise NotFoundError(f"there is no snapshot {snapshot_id[:80]!r}")
        return self._known[snapshot_id]

    def list(self, sandbox_id: str = "", labels: Mapping[str, str] | None = None) -> Sequence[Snapshot]:
        """The snapshots of a sandbox, or of all, that have all of some labels; the oldest first."""
        wanted = (labels or {}).items()
        found = [
            snapshot
            for snapshot in self._known.values()
            if sandbox_id in ("", snapshot.sandbox_id) and wanted <= snapshot.labels.items()
        ]
        return sorted(found, key=lambda snapshot: snapshot.created_at)

    async def add(self, snapshot: Snapshot) -> None:
        """Have a snapshot from now on.

        Raises:
            GuestError: it can't be written down.
        """
        document = {"version": _VERSION, "snapshot": asdict(snapshot)}
        path = self.path(snapshot.id) / _FILE
        try:
            # Not durable: it would wait for the snapshot's files, which may be gigabytes, to be written back.
            await self._call(lambda: replace_file(path, json.dumps(document, indent=1).encode(), durable=False))
        except OSError as error:
            raise GuestError(f"the snapshot can't be kept: {error.strerror or error}") from error
        self._known[snapshot.id] = snapshot

    async def replace_layers(self, snapshot_id: str, layers: tuple[str, ...]) -> None:
        """Have other layers that show the same; nothing happens if it was deleted meanwhile.

        Raises:
            GuestError: it can't be written down.
        """
        async with self._changing:
            snapshot = self._known.get(snapshot_id)
            if snapshot is not None:
                await self.add(evolve(snapshot, spec=evolve(snapshot.spec, layers=layers)))

    async def delete(self, snapshot_id: str) -> None:
        """Have it no more. Its layers are the driver's to remove.

        Raises:
            NotFoundError: there is none with that id.
            GuestError: its file can't be removed.
        """
        self.get(snapshot_id)
        path = self.path(snapshot_id)
        async with self._changing:
            try:
                await self._call(lambda: (path / _FILE).unlink(missing_ok=True))
                await self._call(lambda: shutil.rmtree(path, ignore_errors=True))
            except OSError as error:
                raise GuestError(f"snapshot {snapshot_id} can't be removed: {error.strerror or error}") from error
            self._known.pop(snapshot_id, None)

    def layers(self) -> frozenset[str]:
        """Those of all snapshots."""
        return frozenset(layer for snapshot in self._known.values() for layer in snapshot.spec.layers)

    def images(self) -> frozenset[str]:
        """The digests of the images that they stack on."""
        return frozenset(snapshot.spec.image_digest for snapshot in self._known.values()) - {""}

    def path(self, snapshot_id: str) -> Path:
        """Its directory."""
        return self.directory / snapshot_id

    async def _call(self, function: Callable[[], object]) -> None:
        if self.directory == Path():
            await trio.lowlevel.checkpoint()
            return
        await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=True)

    def _load(self) -> None:
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else ():
            try:
                self._known[path.name] = _read(path / _FILE)
            except FileNotFoundError:
                shutil.rmtree(path, ignore_errors=True)  # of an agent that was killed while it made or removed it
            except (OSError, ValueError) as error:
                log.error("snapshot can't be read", extra={"path": str(path), "reason": str(error)})  # noqa: TRY400  the reason says all


def _read(path: Path) -> Snapshot:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise ValueError(f"it is no snapshot of version {_VERSION}")
    resolve_types(Snapshot, localns={"Mapping": Mapping, "Spec": Spec})  # which are for type checkers above
    try:
        return spec_converter().structure(document.get("snapshot"), Snapshot)
    except Exception as error:  # cattrs raises groups of whatever the parts raised
        raise ValueError(f"it does not describe a snapshot: {error!r}") from error
