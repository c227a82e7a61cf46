"""System calls that Python 3.11 has no function for. All raise OSError."""

from __future__ import annotations

import ctypes
import os
from typing import Final

AT_FDCWD: Final = -100
CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REC: Final = 0x4000
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

RESOLVE_NO_MAGICLINKS: Final = 2
RESOLVE_IN_ROOT: Final = 16

# The numbers are those of every architecture: these calls are younger than the common table.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442

_OPEN_TREE_CLONE: Final = 1
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how, openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, mount_setattr(2)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open a path with an open directory as `/`: neither `..` nor a symbolic link leads out of it."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return _check(_libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)), path)


def clone_mount(opened: int) -> int:
    """A mount of what is open (O_PATH will do), and of all that is mounted below, that hangs nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | _AT_RECURSIVE
    return _check(_libc.syscall(_SYS_OPEN_TREE, opened, b"", flags))


def attach_mount(mount: int, target: str) -> None:
    """Hang a mount of `clone_mount` into the calling thread's mount namespace."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH), target)


def make_read_only(mount: int) -> None:
    """Make a mount read-only, and all that is mounted below: mount_setattr(2)."""
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    size = ctypes.sizeof(attributes)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", flags, ctypes.byref(attributes), size))


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """Mount something, by the system call of that name."""
    arguments = (_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _check(_libc.mount(*arguments), target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_bytes(target), flags), target)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own."""
    _check(_libc.unshare(flags))


def setns(namespace: int, kind: int) -> None:
    """Move the calling thread into a namespace."""
    _check(_libc.setns(namespace, kind))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _check(result: int, path: str | None = None) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
