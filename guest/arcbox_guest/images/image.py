"""What an image is: a root file system, and how its programs are to be run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen

from arcbox_guest.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arcbox_guest.sandboxes.model import Spec

_TRANSPORTS: Final = ("docker://", "oci:", "oci-archive:", "docker-archive:", "docker-daemon:", "dir:")
"""Of skopeo(1); what begins with none of them is a name in a registry."""

_LOCAL: Final = ("oci:", "oci-archive:", "docker-archive:", "dir:")
"""Those with a path in the guest."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")


@frozen
class Reference:
    """Where an image is to be had."""

    text: str
    """As skopeo takes it, transport included."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """A reference as people write it: TRANSPORT:…, or a name as `docker pull` takes it.

        Raises:
            InvalidArgumentError: it is none.
        """
        transport = next((name for name in _TRANSPORTS if text.startswith(name)), "")
        rest = text.removeprefix(transport)
        if "\0" in text or not rest or rest.startswith("-"):
            raise InvalidArgumentError(f"{text[:200]!r} is no image reference")
        if transport in _LOCAL:
            if not rest.startswith("/"):
                raise InvalidArgumentError(f"image {text[:200]!r}: its path is not absolute")
        elif not _NAME.fullmatch(rest):
            raise InvalidArgumentError(f"{text[:200]!r} is no image reference")
        return cls(text if transport else f"docker://{text}")

    def key(self) -> str:
        """A file name for what it leads to: another one when a local file or directory has changed.

        Blocks, if the path is on storage that hangs.
        """
        state = ""
        transport = next((name for name in _LOCAL if self.text.startswith(name)), None)
        if transport is not None:
            path = Path(self.text.removeprefix(transport))
            if not path.exists() and ":" in path.name:  # PATH:TAG
                path = path.with_name(path.name.rpartition(":")[0])
            try:
                found = (path / "index.json" if transport == "oci:" else path).stat()
            except OSError as error:
                raise InvalidArgumentError(f"image {self.text[:200]!r}: {path}: {error.strerror}") from error
            state = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
        return hashlib.sha256(f"{self.text}\0{state}".encode()).hexdigest()


@frozen(kw_only=True)
class Image:
    """An image in the store."""

    digest: str
    """Of its manifest: sha256:HEX."""

    rootfs: Path
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str]
    user: str = ""
    working_dir: str = ""

    def fill(self, spec: Spec) -> Spec:
        """The spec with the image's defaults, as Docker has them: a cmd replaces its cmd, not its entrypoint."""
        return evolve(
            spec,
            rootfs=str(self.rootfs),
            image_digest=self.digest,
            cmd=(*self.entrypoint, *(spec.cmd or self.cmd)),
            env={**self.env, **spec.env},
            user=spec.user or self.user,
            working_dir=spec.working_dir or self.working_dir,
        )


def image_of(digest: str, rootfs: Path, document: Mapping[str, Any]) -> Image:
    """An image from its configuration: OCI image-spec, config.md. What is missing or of another type is left out."""
    config = document.get("config")
    if not isinstance(config, dict):
        config = {}
    env = dict(entry.split("=", 1) for entry in _strings(config.get("Env")) if "=" in entry)
    working_dir = _string(config.get("WorkingDir"))
    return Image(
        digest=digest,
        rootfs=rootfs,
        entrypoint=_strings(config.get("Entrypoint")),
        cmd=_strings(config.get("Cmd")),
        env=env,
        user=_string(config.get("User")),
        working_dir=working_dir if working_dir.startswith("/") else "",
    )


def _string(value: object) -> str:
    return value if isinstance(value, str) and "\0" not in value else ""


def _strings(value: object) -> tuple[str, ...]:
    return tuple(filter(None, map(_string, value))) if isinstance(value, list) else ()
