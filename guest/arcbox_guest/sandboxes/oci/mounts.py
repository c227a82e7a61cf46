"""What is mounted for a sandbox while its init is started; its own mount namespace keeps it from then on.

What comes from the guest (a root file system that is a directory, the sources of bind mounts) is opened once, in the
agent's own mount namespace, and only that open file is used: whoever changes a symbolic link meanwhile changes
nothing, and what was mounted after the driver's own namespace was made is found as well.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from attrs import define, field

from arcbox_guest import linux
from arcbox_guest.errors import GuestError, InvalidArgumentError
from arcbox_guest.sandboxes.oci import etc
from arcbox_guest.sandboxes.oci.layers import mount_options
from arcbox_guest.sandboxes.oci.root_files import open_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from arcbox_guest.sandboxes.model import BindMount
    from arcbox_guest.sandboxes.oci.layers import Layers

_NOT_INTO: Final = ("/dev", "/proc", "/sys")
"""The kernel's own: the runtime mounts them after the root file system, and relies on them."""


@define(eq=False)
class Sources:
    """What a sandbox is made of, open. To be closed when it was made."""

    rootfs: int = field(init=False, default=-1)
    """An image file, or a mount of a directory that hangs nowhere yet."""

    rootfs_status: os.stat_result = field(init=False)
    """As it was found: to ask again may wait for storage again."""

    binds: list[int] = field(init=False, factory=list)
    """Mounts that hang nowhere yet."""

    _stack: ExitStack = field(init=False, factory=ExitStack)

    @classmethod
    def open(cls, rootfs: str, binds: Sequence[BindMount]) -> Sources:
        """Open them all, as they are in the mount namespace of the calling thread. Waits for their storage.

        Raises:
            InvalidArgumentError: something is not there, or can't be that.
            OSError: a mount can't be copied.
        """
        sources = cls()
        try:
            opened, sources.rootfs_status = sources._open(rootfs, "the root file system")
            sources.rootfs = sources._clone(opened) if sources.rootfs_is_directory else opened
            for bind in binds:
                opened, _status = sources._open(bind.source, "the source of a mount")
                sources.binds.append(sources._clone(opened))
        except BaseException:
            sources.close()
            raise
        return sources

    @property
    def rootfs_is_directory(self) -> bool:
        return stat.S_ISDIR(self.rootfs_status.st_mode)

    def close(self) -> None:
        """Close them; again does nothing."""
        self._stack.close()

    def __del__(self) -> None:
        self.close()  # nobody took it: whoever asked was cancelled meanwhile

    def _clone(self, source: int) -> int:
        mount = linux.clone_mount(source)
        self._stack.callback(os.close, mount)
        return mount

    def _open(self, path: str, what: str) -> tuple[int, os.stat_result]:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgumentError(f"{what}, {path}, can't be used: {error.strerror}") from error
        self._stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not any(is_kind(status.st_mode) for is_kind in (stat.S_ISDIR, stat.S_ISREG, stat.S_ISSOCK)):
            raise InvalidArgumentError(f"{what}, {path}, is neither a directory nor a file")
        return fd, status


@define(eq=False)
class MountStack:
    """Mounts that belong together. What is mounted after they were unmounted is unmounted at once.

    That happens when mount(2) has waited for storage for longer than whoever asked for it.
    """

    _targets: list[Path] = field(init=False, factory=list)
    _closed: bool = field(init=False, default=False)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def push(self, target: Path) -> None:
        """Count what was mounted there.

        Raises:
            GuestError: all is unmounted already, this as well now.
        """
        with self._lock:
            self._targets.append(target)
            closed = self._closed
        if closed:
            self.unmount()
            raise GuestError("nobody waits for the mount any more")

    def check(self) -> None:
        """Raises GuestError: all is unmounted already."""
        if self._closed:
            raise GuestError("nobody waits for the mounts any more")

    def unmount(self) -> None:
        """Unmount all, the last one first. Does not wait for storage."""
        with self._lock:
            self._closed = True
            targets, self._targets = self._targets, []
        for target in reversed(targets):
            with suppress(OSError):
                linux.unmount(str(target), linux.MNT_DETACH)


@define(eq=False)
class Stage:
    """The mounts of one sandbox, below its directory. To be used in the driver's mount namespace; all of it blocks."""

    directory: Path
    mounts: MountStack = field(init=False, factory=MountStack)

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    def mount_root(self, lower: Path | int, layers: Layers, upper: str, below: Sequence[str]) -> None:
        """Mount the root file system.

        Args:
            lower: a directory in the driver's namespace, or a mount that hangs nowhere yet.
            layers: where the layers are.
            upper: the layer that is written to.
            below: the layers between the two, the uppermost first.

        Raises:
            GuestError: it can't be mounted.
        """
        self.rootfs.mkdir(exist_ok=True)
        if isinstance(lower, int):
            lower = self._attach_lower(lower)
        options = mount_options(upper, below, _escape(lower))
        try:
            with layers.entered():
                linux.mount("overlay", str(self.rootfs), "overlay", linux.MS_NODEV, options)
        except OSError as error:
            raise GuestError(f"the overlay in {self.directory} can't be mounted: {error.strerror}") from error
        self.mounts.push(self.rootfs)

    def write_etc(self, contents: Mapping[str, str]) -> None:
        """Put files into the /etc of the root file system, by their names.

        Raises:
            OSError: there is no room for them.
        """
        with open_path(str(self.rootfs)) as root:
            etc.write(root, contents)

    def mount_binds(self, mounts: Sequence[int], binds: Sequence[BindMount]) -> None:
        """Hang mounts, which hang nowhere yet, into the root file system, one after the other.

        It is not left to the runtime, for which a target would be a path: what leads elsewhere may lie in a source that
        was mounted before, and other sandboxes may write there at any time.

        Raises:
            InvalidArgumentError: there can't be such a target.
        """
        with open_path(str(self.rootfs)) as root:
            for mount, bind in zip(mounts, binds, strict=True):
                linux.make_private(mount, readonly=bind.readonly)
                with _target(root, bind.target, is_directory=_is_directory(mount)) as target:
                    linux.attach_mount(mount, target)

    def _attach_lower(self, mount: int) -> Path:
        path = self.directory / "lower"
        path.mkdir(exist_ok=True)
        linux.make_private(mount)
        with open_path(str(path)) as target:
            linux.attach_mount(mount, target)
        self.mounts.push(path)
        return path


@contextmanager
def _target(root: int, path: str, *, is_directory: bool) -> Iterator[int]:
    """Have something to mount on, open.

    Raises:
        InvalidArgumentError: that can't be.
    """
    with ExitStack() as stack:
        try:
            fd = stack.enter_context(_opened_or_made(root, path, is_directory=is_directory))
            resolved = "/" + os.path.relpath(_path_of(fd), _path_of(root))
            mode = os.fstat(fd).st_mode
        except OSError as error:
            why = error.strerror
            raise InvalidArgumentError(f"{path} can't be made in the sandbox, to mount on it: {why}") from error
        if stat.S_ISDIR(mode) != is_directory:
            kinds = ("directory", "file") if is_directory else ("file", "directory")
            raise InvalidArgumentError(f"{path} in the sandbox is a {kinds[1]}: no {kinds[0]} can be mounted on it")
        if resolved == "/." or any(resolved == taken or resolved.startswith(f"{taken}/") for taken in _NOT_INTO):
            raise InvalidArgumentError(f"nothing can be mounted on {path} in the sandbox: it is taken")
        yield fd


@contextmanager
def _opened_or_made(root: int, path: str, *, is_directory: bool) -> Iterator[int]:
    fd, missing = _open_existing(root, path)
    try:
        while missing:
            name = missing.pop()
            _make(fd, name, is_directory=is_directory or bool(missing))
            parent, fd = fd, os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(parent)
        yield fd
    finally:
        os.close(fd)


def _open_existing(root: int, path: str) -> tuple[int, list[str]]:
    """Open as much of a path as there is; what is missing, the last name first. A path can have 2,000."""
    missing: list[str] = []
    while True:
        try:
            return linux.open_in_root(root, path or "/", os.O_PATH), missing
        except FileNotFoundError:
            path, _, name = path.rstrip("/").rpartition("/")
            missing.append(name)


def _make(parent: int, name: str, *, is_directory: bool) -> None:
    if is_directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))


def _is_directory(opened: int) -> bool:
    return stat.S_ISDIR(os.fstat(opened).st_mode)


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _escape(path: Path) -> str:
    """A path as an option of overlayfs, to which `:` and `,` mean something."""
    return "".join(f"\\{character}" if character in "\\:," else character for character in str(path))
