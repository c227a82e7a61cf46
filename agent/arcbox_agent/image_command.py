"""`arcbox-agent image ls|pull|rm`: the store of images, whether an agent runs or not."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from arcbox_agent._tables import table
from arcbox_agent.guest_setup import image_store
from arcbox_guest.sandboxes import records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.settings import Settings
    from arcbox_guest.images.store import StoredImage

_SHORT = 12
"""Digits of a digest that tell images apart for people, as Docker shows them."""


def list_images(settings: Settings) -> str:
    """A table of the images, for people."""
    images = trio.run(image_store(settings).list)
    used = in_use(settings)
    rows = [[*_row(stored), "yes" if stored.image.digest in used else ""] for stored in images]
    return table([["IMAGE", "DIGEST", "LAST USED", "IN USE"], *rows])


def pull_image(settings: Settings, reference: str) -> str:
    """Have an image in the store; its digest.

    Raises:
        GuestError: it can't be had.
    """
    return trio.run(image_store(settings).get, reference).digest


def remove_image(settings: Settings, name: str) -> None:
    """Remove an image by its reference or digest.

    Raises:
        GuestError: there is none, or a sandbox has it.
    """
    trio.run(partial(image_store(settings).remove, name, in_use(settings)))


def in_use(settings: Settings) -> frozenset[str]:
    """The digests of the images that sandboxes have, by their records."""
    digests = set()
    for path in Path(settings.sandbox.data_dir, "records").glob("*.json"):
        with suppress(OSError, ValueError):
            digests.add(records.read(path).spec.image_digest)
    return frozenset(digests - {""})


def _row(stored: StoredImage) -> Sequence[str]:
    name = ", ".join(stored.references) or "-"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.last_used))
    return name.removeprefix("docker://"), stored.image.digest.removeprefix("sha256:")[:_SHORT], used
