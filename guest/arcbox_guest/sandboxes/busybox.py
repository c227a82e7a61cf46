"""A small root file system to begin with: busybox, and what programs expect around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_guest.errors import ConflictError, GuestError, InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FILES: Final = {
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/os-release": 'ID=arcbox-busybox\nNAME="ArcBox busybox"\nPRETTY_NAME="ArcBox busybox"\n',
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/profile": "export PS1='\\h:\\w\\$ '\n",
}

_DIRECTORIES: Final = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "var": 0o755,
    "var/tmp": 0o1777,
}

_LINKS: Final = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin"}

_TIMEOUT: Final = 60.0
"""Seconds for each program that is run: the whole is two megabytes."""

_SPARE_MIB: Final = 4
"""Of an ext4 image, beyond its files: for what the file system itself needs."""


def build(target: Path, busybox: Path | None = None) -> None:
    """Make a root file system at `target`; what it ends with says which kind.

    Args:
        target: a directory, or an image file: `.ext4`, `.squashfs` or `.erofs`. It must not exist; what it is to be put
            in need not, either.
        busybox: the program, linked statically; by default that of the path.

    Raises:
        ConflictError: the target exists.
        InvalidArgumentError: busybox is not linked statically: it would not run where its libraries are not.
        UnavailableError: a program that this takes is not installed.
        GuestError: one of them failed.
    """
    if os.path.lexists(target):
        raise ConflictError(f"{target} exists already")
    program = busybox or Path(_program("busybox", "busybox-static"))
    applets = _applets(program)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rootfs-", dir=target.absolute().parent) as scratch:
        tree = Path(scratch, "tree")
        _populate(tree, program, applets)
        made = Path(scratch, "image")
        make_image = _IMAGES.get(target.suffix)
        if make_image is None:
            made = tree
        else:
            make_image(tree, made)
        made.rename(target)


def _applets(busybox: Path) -> list[str]:
    if b"/ld-" in busybox.read_bytes()[:4096]:  # the interpreter's path stands right behind the ELF headers
        raise InvalidArgumentError(
            f"{busybox} is not linked statically; Debian's package busybox-static has one that is"
        )
    return _run([str(busybox), "--list"]).split()


def _populate(tree: Path, busybox: Path, applets: Sequence[str]) -> None:
    tree.mkdir()
    tree.chmod(0o755)
    for name, mode in _DIRECTORIES.items():
        (tree / name).mkdir()
        (tree / name).chmod(mode)  # as it is, whatever the umask says
    for name, content in _FILES.items():
        (tree / name).write_text(content)
        (tree / name).chmod(0o644)
    shutil.copyfile(busybox, tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    for name in applets:
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    for name, to in _LINKS.items():
        (tree / name).symlink_to(to)


def _make_ext4(tree: Path, image: Path) -> None:
    size = sum(path.lstat().st_size for path in tree.rglob("*")) // 2**20 + 1 + _SPARE_MIB
    command = [_program("mkfs.ext4", "e2fsprogs"), "-q", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0"]
    _run([*command, "-d", str(tree), str(image), f"{size}M"])


def _make_squashfs(tree: Path, image: Path) -> None:
    _run([_program("mksquashfs", "squashfs-tools"), str(tree), str(image), "-all-root", "-no-progress", "-quiet"])


def _make_erofs(tree: Path, image: Path) -> None:
    _run([_program("mkfs.erofs", "erofs-utils"), "--all-root", "--quiet", str(image), str(tree)])


_IMAGES: Final[dict[str, Callable[[Path, Path], None]]] = {
    ".ext4": _make_ext4,
    ".squashfs": _make_squashfs,
    ".erofs": _make_erofs,
}


def _program(name: str, package: str) -> str:
    # Debian keeps mkfs out of the path of people who are not root.
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise UnavailableError(f"{name} is not installed; Debian has it in {package}")
    return found


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603  programs of the system, on paths of our own
            command, check=False, capture_output=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{command[0]} can't be run: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "nothing"
        raise GuestError(f"{Path(command[0]).name} ended with {done.returncode}; it said: {said}")
    return done.stdout
