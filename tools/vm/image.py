"""The guest image: a Debian with the agent's package, its kernel, and a first root file system that finds the disk.

Images are kept in `$XDG_CACHE_HOME/arcbox-agent/images/<hash of all inputs>`, the Debian below them by itself in
`base/`, because that takes a network and a minute. To build takes root, mmdebstrap and mkfs.ext4.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from tools.vm import cpio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT: Final = Path(__file__).parents[2]
"""Of the checkout."""

_SUITE: Final = "bookworm"
_PACKAGES: Final = (
    *("systemd", "systemd-sysv", "kmod", "mount", "procps", "iproute2", "python3", "libstdc++6"),
    *("crun", "catatonit", "busybox-static", "squashfs-tools", "nftables", "golang-github-containers-common"),
)
_UNPACK_KERNEL: Final = (
    'cd "$1/tmp"'
    ' && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"'
    " && kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')"
    ' && apt-get -qq -o APT::Sandbox::User=root download "$kernel"'
    ' && dpkg-deb -x "$kernel"_*.deb kernel'
    ' && mv kernel/lib/modules "$1/usr/lib/"'
    ' && mv kernel/boot/* "$1/boot/"'
    ' && rm -r kernel "$kernel"_*.deb'
)
"""For the kernel that the metapackage stands for. To install it would make an initial RAM disk; to unpack it over the
root would put its directory `lib` in the place of the link of that name."""
_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4")
"""For the first root file system, with what they need."""

_MASKED: Final = (
    *("getty-static.service", "getty@tty1.service"),  # there are no other consoles
    *("dev-hugepages.mount", "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount", "systemd-binfmt.service"),
    *("sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@efi_pstore.service"),
    *("kmod-static-nodes.service", "systemd-pstore.service", "systemd-repart.service", "systemd-sysusers.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
)
"""Units that nothing here takes, and that cost an emulated processor ten seconds of a boot."""

_INPUTS: Final = (
    *("agent", "guest", "handlers", "protocol", "deploy", "tools/deb", "pyproject.toml"),
    *("tools/vm/image.py", "tools/vm/cpio.py", "tools/vm/initrd-init"),
)
_SIZE: Final = "2G"
"""Of the root file system. The file is sparse."""

_UNFINISHED: Final = ".making-"
"""What the name of a directory begins with as long as not all is in it."""

_KEPT: Final = 5
"""Images in the cache, and as many Debians: more than any run of tests boots."""


@frozen
class Image:
    """What a virtual machine boots."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The root file system, ext4: virtual machines write to overlays of it."""
        return self.directory / "rootfs.ext4"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def image(*more: str) -> Image:
    """The image of this checkout; built when it is not in the cache.

    Args:
        more: packages of the distribution's that it shall have besides.

    Raises:
        subprocess.CalledProcessError: a step of it fails, and has said why.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arcbox-agent" / "images"
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / _hash(_files(_INPUTS), *more)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.is_dir():
            print(f"Building the guest image in {wanted} ...", file=sys.stderr)
            _clear_away(cache)
            base = _base(cache, (*_PACKAGES, *more))
            with _making(wanted) as directory:
                _build(base, directory)
            _sweep(cache)
        os.utime(wanted)
    return Image(wanted)


def _files(names: Iterable[str]) -> list[Path]:
    found = list[Path]()
    for name in names:
        path = ROOT / name
        found += (
            [file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc"] if path.is_dir() else [path]
        )
    return sorted(found)


def _hash(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256(repr(more).encode())
    for file in files:
        digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _making(target: Path) -> Iterator[Path]:
    """A directory that gets its name when all that shall be in it is."""
    directory = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    try:
        yield directory
        directory.chmod(0o755)
        directory.rename(target)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _base(cache: Path, packages: Sequence[str]) -> Path:
    """A Debian without the agent, with the kernel in it."""
    base = cache / f"base-{hashlib.sha256(repr((_SUITE, packages, _UNPACK_KERNEL)).encode()).hexdigest()[:16]}"
    if not base.is_dir():
        with _making(base) as directory:
            slim = [f"path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "info")]
            _run(
                *("mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(packages)}"),
                *('--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"),
                *(f"--dpkgopt={option}" for option in slim),
                *(f"--customize-hook={_UNPACK_KERNEL}", _SUITE, str(directory / "root.tar")),
            )
    os.utime(base)
    return base


def _build(base: Path, directory: Path) -> None:
    root = directory / "root"
    root.mkdir()
    _run("tar", "--extract", "--numeric-owner", "--xattrs", "--file", str(base / "root.tar"), "--directory", str(root))
    package = _run(str(ROOT / "tools" / "deb"), str(directory))
    shutil.copy(package.strip(), root / "tmp" / "arcbox-agent.deb")
    _run("chroot", str(root), "dpkg", "--install", "/tmp/arcbox-agent.deb", to_stderr=True)  # noqa: S108  a new root's own
    (root / "tmp" / "arcbox-agent.deb").unlink()
    _settle(root)
    version = next((root / "lib" / "modules").iterdir()).name
    shutil.move(next((root / "boot").glob("vmlinuz-*")), directory / "vmlinuz")
    _run("chroot", str(root), "depmod", version)
    (directory / "initrd").write_bytes(_initrd(root, version))
    _run("mkfs.ext4", "-q", "-L", "arcbox-root", "-d", str(root), str(directory / "rootfs.ext4"), _SIZE)
    shutil.rmtree(root)


def _settle(root: Path) -> None:
    """What an administrator of the guest would set: a name, a console without a password, no first-boot questions."""
    (root / "etc" / "hostname").write_text("arcbox\n")
    (root / "etc" / "machine-id").write_text("")
    (root / "etc" / "fstab").write_text("/dev/vda / ext4 rw,discard 0 1\n")
    # Not serial-getty@.service, which waits for udev to find the device.
    system = root / "etc" / "systemd" / "system"
    (system / "console-getty.service.d").mkdir()
    (system / "console-getty.service.d" / "login.conf").write_text(
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud console 115200 $TERM\n"
    )
    _run("chroot", str(root), "systemctl", "--quiet", "enable", "console-getty.service")
    _run("chroot", str(root), "systemctl", "--quiet", "mask", *_MASKED)


def _initrd(root: Path, version: str) -> bytes:
    shown = _run("chroot", str(root), "modprobe", "--set-version", version, "--show-depends", "--all", *_MODULES)
    paths = dict.fromkeys(
        root / line.split()[1].lstrip("/") for line in shown.splitlines() if line.startswith("insmod")
    )
    files: dict[str, bytes | str] = {f"modules/{path.name}": path.read_bytes() for path in paths}
    files["modules/order"] = "".join(f"{path.name}\n" for path in paths).encode()
    files["busybox"] = (root / "bin" / "busybox").read_bytes()
    files["init"] = (ROOT / "tools" / "vm" / "initrd-init").read_bytes()
    return cpio.archive(files)


def _run(*command: str, to_stderr: bool = False) -> str:
    """Run a command; its standard output, unless that goes to ours."""
    output = sys.stderr if to_stderr else subprocess.PIPE
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=output, text=True).stdout or ""


def _clear_away(cache: Path) -> None:
    """Remove what builds left that were killed; whoever calls this has the lock, so nobody else builds."""
    for path in cache.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def _sweep(cache: Path) -> None:
    """Remove all but the latest images, and Debians below them."""
    kept = [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    kept.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    bases = [path for path in kept if path.name.startswith("base-")]
    images = [path for path in kept if path not in bases]
    for path in [*images[_KEPT:], *bases[_KEPT:]]:
        shutil.rmtree(path)
