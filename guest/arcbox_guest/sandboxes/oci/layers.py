"""The writable layers of sandboxes, and those that snapshots have frozen.

    layers/NAME/data    an upper layer of overlayfs
    layers/NAME/work    overlayfs's own, beside it
    layers/NAME/frozen  is there when it belongs to a snapshot
    layers/NAME/merged  is a link with the name of the layer that shows what this one and all below it show
    sandboxes/ID/layers the names of the layers that a sandbox has, or has had

A layer is written by one sandbox, from its creation until a checkpoint gives that sandbox a new one; it is never moved,
so mounts that use it need not know. A layer that no sandbox, no snapshot and no such link of theirs names is garbage.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from arcbox_guest.sandboxes.oci.root_files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

MANY_LAYERS: Final = 32
"""Layers of a snapshot beyond which they are merged into one, in the background."""

LONGEST_CHAIN: Final = 128
"""Layers of a sandbox beyond which a checkpoint waits for that: overlayfs takes 500, in 4,096 bytes of options."""

_OPAQUE: Final = "trusted.overlay.opaque"
"""Of a directory that hides what lower layers have in one of its name; overlayfs.rst in the kernel's documentation."""

_NAMED_BY: Final = "layers"
_FROZEN: Final = "frozen"
_MERGED: Final = "merged"


@frozen
class Layers:
    """The layers below one directory, and the sandboxes' directories that name them. All of it blocks."""

    directory: Path
    sandboxes: Path

    def add_for(self, sandbox: Path, below: Sequence[str]) -> str:
        """A new empty layer for a sandbox, above others.

        The sandbox's directory names all of them before there is anything, so that none is ever taken for garbage.

        Args:
            sandbox: its directory, which exists.
            below: the layers that it stacks on, the uppermost first.
        """
        name = new_name()
        with (sandbox / _NAMED_BY).open("a") as file:
            file.write("".join(f"{each}\n" for each in (name, *below)))
        for part in ("data", "work"):
            (self.directory / name / part).mkdir(parents=True)
        (self.directory / name / "data").chmod(0o755)  # the sandbox's /, for all of its users
        return name

    def freeze(self, names: Sequence[str]) -> None:
        """Mark layers as those of a snapshot: they outlive the sandboxes that name them."""
        for name in names:
            (self.directory / name / _FROZEN).touch()

    def remove_of(self, sandbox: Path) -> None:
        """Remove the layers that a sandbox alone has had."""
        for name in named_by(sandbox):
            if not (self.directory / name / _FROZEN).exists():
                remove_tree(self.directory / name)

    def look(self) -> tuple[set[str], set[str]]:
        """The layers that there are, and those of them that directories of sandboxes name."""
        found = {entry.name for entry in _entries(self.directory)}  # before the names are read: new ones come later
        return found, {name for sandbox in _entries(self.sandboxes) for name in named_by(sandbox)}

    def remove(self, found: Collection[str], used: Collection[str]) -> None:
        """Remove those of some layers that are not used, nor merged layers of such as are."""
        merged = {self._merged(name) for name in used}
        for name in {*found} - {*used} - merged:
            remove_tree(self.directory / name)

    def merge(self, chain: Sequence[str], name: str) -> None:
        """Make a layer that has what a chain of them shows, whiteouts included, without a copy of any file.

        Files are hard links to those of the chain: sandboxes see one link more than before, and nothing else.

        Args:
            chain: layers that nobody writes to, the uppermost first.
            name: of the new layer. Nobody uses it before `supersede`.
        """
        merged = self.directory / name / "data"
        merged.mkdir(parents=True)
        for layer in reversed(chain):
            _lay_over(self.directory / layer / "data", merged)
        self.freeze([name])

    def supersede(self, layer: str, name: str) -> None:
        """Use a merged layer from now on, in place of a layer and all below it."""
        (self.directory / layer / _MERGED).symlink_to(name)

    def shortened(self, chain: Sequence[str]) -> list[str]:
        """A chain that shows the same, with the merged layer if there is one."""
        for index, layer in enumerate(chain):
            if merged := self._merged(layer):
                return [*chain[:index], merged]
        return list(chain)

    def _merged(self, layer: str) -> str:
        """The layer that shows what this one and all below it show; empty if there is none."""
        with suppress(FileNotFoundError):
            return os.readlink(self.directory / layer / _MERGED)
        return ""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread, which must have a working directory of its own, in the layers' directory."""
        os.chdir(self.directory)
        try:
            yield
        finally:
            os.chdir("/")


def new_name() -> str:
    """A name for a layer. It is short: overlayfs takes all names in one page of options."""
    return secrets.token_hex(4)


def mount_options(upper: str, below: Sequence[str], base: str) -> str:
    """Options for an overlay of layers, for a mount(2) in their directory.

    It is volatile: no fsync(2) in it writes back, nor does its end, which would wait for all that anybody has written
    to the file system of the layers. What a sandbox writes need not outlive the machine.

    Args:
        upper: the layer that is written to.
        below: the layers under it, the uppermost first.
        base: the path of the root file system below them all, escaped.
    """
    lower = ":".join([*(f"{name}/data" for name in below), base])
    return f"lowerdir={lower},upperdir={upper}/data,workdir={upper}/work,volatile"


def chain_of(process: int) -> list[str]:
    """The layers of the root file system that a process has, the one that is written to first.

    The kernel knows best: a former agent may have been killed at any moment of a checkpoint.
    """
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        options = [line.rpartition(" ")[2].strip() for line in file if line.split(" ", 5)[4] == "/"][-1]
    upper = re.search(r"upperdir=([0-9a-f]+)/data", options)
    lower = re.search(r"lowerdir=([^,]*)", options)
    if upper is None or lower is None:
        raise OSError(errno.ENOENT, f"its root file system is no overlay of layers: {options[:200]}")
    return [upper[1], *re.findall(r"(?:^|:)([0-9a-f]+)/data(?=:)", lower[1])]


def named_by(sandbox: Path) -> list[str]:
    """The layers that a sandbox's directory names: all that it ever had. None if it is gone."""
    try:
        return (sandbox / _NAMED_BY).read_text().split()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _lay_over(upper: Path, merged: Path) -> None:
    """Put a layer over what is there: directories are merged, all else is replaced by hard links to the layer's.

    It does not recurse, since sandboxes nest as deep as they like. Directories get their attributes last.
    """
    pending, directories = [(upper, merged)], []
    while pending:
        source, target = pending.pop()
        directories.append((source, target))
        with os.scandir(source) as entries:
            for entry in entries:
                path = target / entry.name
                if entry.is_dir(follow_symlinks=False):
                    _have_directory(Path(entry.path), path)
                    pending.append((Path(entry.path), path))
                else:
                    _remove(path)
                    os.link(entry.path, path, follow_symlinks=False)
    for source, target in reversed(directories):
        _copy_attributes(source, target)


def _have_directory(source: Path, target: Path) -> None:
    if _is_opaque(source) or not target.is_dir() or target.is_symlink():
        _remove(target)
        target.mkdir()


def _is_opaque(directory: Path) -> bool:
    with suppress(OSError):
        return os.getxattr(directory, _OPAQUE) == b"y"
    return False


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        remove_tree(path)


def _copy_attributes(source: Path, target: Path) -> None:
    """Owner, mode, times and extended attributes of a directory; an opaque one stays so, whatever is laid over it."""
    found = source.stat()
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.chown(target, found.st_uid, found.st_gid)
    target.chmod(stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
