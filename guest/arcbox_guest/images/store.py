"""The images that this guest has, each unpacked once, however many sandboxes use it.

    store/refs/KEY.json          which image a reference has led to
    store/images/HEX/rootfs      an image's root file system; HEX is its manifest's digest
    store/images/HEX/config.json its configuration
    store/staging/…              what is being made, or was when an agent was killed: see `staging`

What is in refs and images is whole: both are renamed into their places.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from attrs import define, field, frozen

from arcbox_guest.errors import ConflictError, GuestError, NotFoundError, NotSupportedError, TimedOutError
from arcbox_guest.images import staging
from arcbox_guest.images.image import Reference, image_of
from arcbox_guest.images.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from arcbox_guest.images.image import Image

log = logging.getLogger(__name__)

T = TypeVar("T")

_TAG: Final = "image"
_PULLS: Final = 2
"""At a time; more of them only share the network and the disk."""

_CLEANING: Final = 10.0
"""Seconds to wait for the removal of what a pull has left."""

_LONGEST_INTERVAL: Final = 3600.0
"""Seconds between two looks for garbage."""

_THREADS: Final = 4


@frozen
class StoredImage:
    """An image as people are shown it."""

    image: Image
    references: tuple[str, ...]
    last_used: float
    """Unix seconds."""


@define(eq=False)
class ImageStore:
    """The images in a directory. Any number of stores, in processes of their own too, may share it."""

    directory: Path
    pull_timeout: float = 600.0
    """Seconds for which one image may be copied."""

    policy: str = ""
    """A file for containers-policy.json(5); empty accepts images that nobody signed."""

    _pulling: dict[str, trio.Event] = field(init=False, factory=dict)
    """By the references' keys: set at the end of the pull, whatever came of it."""

    _pulls: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_PULLS))
    _threads: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_THREADS))

    async def get(self, text: str) -> Image:
        """The image of a reference; it is pulled if it isn't there, once however many ask at the same time.

        Raises:
            InvalidArgumentError: it is no reference, or leads to no file of the guest.
            NotSupportedError: skopeo or umoci is not installed.
            TimedOutError: it took too long.
            GuestError: it can't be had; the text has skopeo's or umoci's reason.
        """
        reference = Reference.parse(text)
        key = await self._call(reference.key)
        while True:
            image = await self._call(partial(self._find, key))
            if image is not None:
                return image
            running = self._pulling.get(key)
            if running is None:
                return await self._pull_once(reference, key)
            await running.wait()  # if that one failed or was cancelled, the next one tries for itself

    async def list(self) -> Sequence[StoredImage]:
        """All images, the one that was used last first."""
        images = await self._call(lambda: list(self._stored()))
        return sorted(images, key=lambda stored: stored.last_used, reverse=True)

    async def remove(self, name: str, in_use: Collection[str]) -> None:
        """Remove an image.

        Args:
            name: a reference, a digest, or the beginning of one of at least 6 digits.
            in_use: the digests of images that sandboxes have.

        Raises:
            NotFoundError: there is none.
            ConflictError: a sandbox has it, or the name is that of several.
        """
        found = [stored for stored in await self.list() if _has_name(stored, name)]
        if not found:
            raise NotFoundError(f"there is no image {name[:200]!r}")
        if len(found) > 1:
            raise ConflictError(f"{name[:200]!r} is the beginning of several images")
        if found[0].image.digest in in_use:
            raise ConflictError(f"image {name[:200]!r} is used by a sandbox")
        await self._call(partial(self._remove, found[0]))

    async def collect_garbage(self, unused_for: float, in_use: Collection[str]) -> None:
        """Remove images that no sandbox has, nor had for some seconds."""
        for stored in await self.list():
            if stored.image.digest not in in_use and stored.last_used + unused_for < time.time():
                log.info("unused image removed", extra={"image": stored.image.digest})
                await self._call(partial(self._remove, stored))

    async def collect_periodically(self, unused_for: float, in_use: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Remove now and then what pulls have left that were killed, and unused images unless `unused_for` is 0."""
        while True:
            await self._call(partial(staging.sweep, self._staging))
            if unused_for:
                await self.collect_garbage(unused_for, await in_use())
            await trio.sleep(min(unused_for or _LONGEST_INTERVAL, _LONGEST_INTERVAL))

    async def _pull_once(self, reference: Reference, key: str) -> Image:
        done = self._pulling[key] = trio.Event()
        try:
            async with self._pulls:
                return await self._pull(reference, key)
        finally:
            del self._pulling[key]
            done.set()

    async def _pull(self, reference: Reference, key: str) -> Image:
        place = await self._call(self._make_place)
        layout = f"{place.path}/layout:{_TAG}"
        policy = ["--policy", self.policy] if self.policy else ["--insecure-policy"]
        try:
            with trio.fail_after(self.pull_timeout):
                await _run(place.path, "skopeo", *policy, "copy", "--quiet", reference.text, f"oci:{layout}")
                digest, config = await self._call(partial(_read_layout, place.path / "layout"))
                image = await self._call(partial(self._load, digest))
                if image is None:
                    await _run(place.path, "umoci", "raw", "unpack", "--image", layout, f"{place.path}/image/rootfs")
                    await self._call(partial(self._install, place.path, digest, config))
            return await self._call(partial(self._refer, place.path, reference, key, digest))
        except trio.TooSlowError:
            seconds = f"{self.pull_timeout:.0f} seconds"
            raise TimedOutError(f"image {reference.text} could not be had in {seconds}") from None
        finally:
            with trio.move_on_after(_CLEANING, shield=True):  # beyond that it goes on in its thread
                await self._call(place.remove)

    async def _call(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._threads, abandon_on_cancel=True)

    def _make_place(self) -> Staging:
        for name in ("refs", "images"):
            (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        place = Staging.make(self._staging)
        (place.path / "image").mkdir()
        return place

    def _install(self, place: Path, digest: str, config: bytes) -> None:
        (place / "image" / "config.json").write_bytes(config)
        with suppress(OSError):  # ENOTEMPTY: another process was faster, with the same content
            (place / "image").rename(self._path(digest))

    def _refer(self, place: Path, reference: Reference, key: str, digest: str) -> Image:
        image = self._load(digest)
        if image is None:
            raise GuestError(f"image {reference.text} was removed while it was pulled")
        (place / "ref").write_text(json.dumps({"reference": reference.text, "digest": digest}))
        (place / "ref").rename(self.directory / "refs" / f"{key}.json")
        return image

    def _find(self, key: str) -> Image | None:
        document = _read_json(self.directory / "refs" / f"{key}.json")
        image = self._load(str(document.get("digest", "")))
        if image is not None:
            with suppress(OSError):
                os.utime(image.rootfs.parent)  # "last used", for the garbage collection
        return image

    def _load(self, digest: str) -> Image | None:
        path = self._path(digest)
        if not digest or not (path / "config.json").is_file():
            return None
        return image_of(digest, path / "rootfs", _read_json(path / "config.json"))

    def _stored(self) -> Iterator[StoredImage]:
        references: dict[str, list[str]] = {}
        for path in _entries(self.directory / "refs"):
            document = _read_json(path)
            references.setdefault(str(document.get("digest", "")), []).append(str(document.get("reference", "")))
        for path in _entries(self.directory / "images"):
            image = self._load(f"sha256:{path.name}")
            if image is not None:
                names = tuple(sorted(set(references.get(image.digest, []))))
                yield StoredImage(image, names, path.stat().st_mtime)

    def _remove(self, stored: StoredImage) -> None:
        """References first: nobody must find one to an image that is half gone."""
        for path in _entries(self.directory / "refs"):
            if _read_json(path).get("digest") == stored.image.digest:
                path.unlink(missing_ok=True)
        place = self._make_place()
        with suppress(FileNotFoundError):
            stored.image.rootfs.parent.rename(place.path / "image")  # which is empty
        place.remove()

    @property
    def _staging(self) -> Path:
        return self.directory / "staging"

    def _path(self, digest: str) -> Path:
        return self.directory / "images" / digest.removeprefix("sha256:")


def _has_name(stored: StoredImage, name: str) -> bool:
    if name.removeprefix("docker://") in (text.removeprefix("docker://") for text in stored.references):
        return True
    digits = name.removeprefix("sha256:")
    return len(digits) >= 6 and stored.image.digest.removeprefix("sha256:").startswith(digits)


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _read_json(path: Path) -> dict[str, Any]:
    """A document; empty if there is none, or it is none."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_layout(layout: Path) -> tuple[str, bytes]:
    """The digest of the manifest in an OCI layout with one image, and its configuration."""
    try:
        digest = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
        manifest = json.loads(_blob(layout, digest).read_bytes())
        return digest, _blob(layout, manifest["config"]["digest"]).read_bytes()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise GuestError(f"the image is none that can be read: {error!r}") from error


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, digits = digest.partition(":")
    if algorithm != "sha256" or not digits.isalnum():
        raise ValueError(f"digest {digest[:80]!r}")
    return layout / "blobs" / algorithm / digits


async def _run(place: Path, *command: str) -> None:
    """Run one of the tools in a directory of `staging`; it is killed when that is cancelled."""
    try:
        completed = await trio.run_process(
            command, cwd=place, capture_stdout=True, capture_stderr=True, check=False, start_new_session=True
        )
    except FileNotFoundError as error:
        raise NotSupportedError(f"images need {command[0]}, and it is not installed") from error
    if completed.returncode:
        lines = completed.stderr.decode(errors="replace").strip().splitlines() or ["it does not say why"]
        raise GuestError(f"{command[0]}: {_reason(lines[-1])}")


def _reason(line: str) -> str:
    """The message of a line of logrus, which the tools write: time="…" level=fatal msg="…"."""
    _, separator, message = line.partition('msg="')
    return (message.removesuffix('"').replace('\\"', '"') if separator else line)[:1000]
