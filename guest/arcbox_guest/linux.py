"""System calls that Python 3.11 has no function for. All raise OSError."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

RESOLVE_NO_XDEV: Final = 1
RESOLVE_NO_MAGICLINKS: Final = 2
RESOLVE_IN_ROOT: Final = 16
RESOLVE_CACHED: Final = 32

# The numbers are those of every architecture: these calls are younger than the common table.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_FACCESSAT2: Final = 439
_SYS_MOUNT_SETATTR: Final = 442
_SYS_SETGROUPS: Final = 116 if platform.machine() == "x86_64" else 159  # not so young
_SYS_PIVOT_ROOT: Final = 155 if platform.machine() == "x86_64" else 41

_AT_FDCWD: Final = -100

_OPEN_ATTEMPTS: Final = 100
"""How often openat2(2) is tried again that says EAGAIN: any rename on the machine in the same moment makes it do so."""

_OPEN_TREE_CLONE: Final = 1
_AT_EACCESS: Final = 0x200
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_MOUNT_ATTR_RDONLY: Final = 1

libc = ctypes.CDLL(None, use_errno=True)
"""For modules beside this one: what it returns is for `check_result`."""


class _OpenHow(ctypes.Structure):
    """struct open_how, openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, mount_setattr(2)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open a path with an open directory as `/`: neither `..` nor a symbolic link leads out of it.

    Raises:
        OSError: EAGAIN, again and again something was renamed while `..` was resolved; and what openat2(2) says.
    """
    attempts = _OPEN_ATTEMPTS
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    while (opened := _openat2(root, os.fsencode(path), flags, resolve)) == -1 and ctypes.get_errno() == errno.EAGAIN:
        attempts -= 1
        if attempts < 0:
            break
    return check_result(opened, path)


def open_cached(path: bytes) -> int:
    """Open a path with O_PATH if the kernel has all of it in memory, so without waiting for storage: Linux 5.12.

    Raises:
        OSError: EAGAIN, it has not; and what openat2(2) says.
    """
    return check_result(_openat2(_AT_FDCWD, path, os.O_PATH, RESOLVE_CACHED))


def _openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    result: int = libc.syscall(_SYS_OPENAT2, directory, path, ctypes.byref(how), ctypes.sizeof(how))
    return result


def check_no_mount_point(directory: int, name: str) -> None:
    """Find out whether something is mounted on a name in an open directory, in that directory's mount namespace.

    The kernel itself asks only for mounts in the caller's namespace: who removes or replaces a mount point of another
    one has unmounted it, rename(2) and rmdir(2) don't say so.

    Raises:
        OSError: EBUSY, there is a mount; ENOENT, there is nothing.
    """
    opened = _openat2(directory, os.fsencode(name), os.O_PATH | os.O_NOFOLLOW, RESOLVE_NO_XDEV)
    if opened == -1 and ctypes.get_errno() == errno.EXDEV:
        raise OSError(errno.EBUSY, "something is mounted there", name)
    os.close(check_result(opened, name))


def clone_mount(opened: int) -> int:
    """A mount of what is open (O_PATH will do), and of all that is mounted below, that hangs nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | _AT_RECURSIVE
    return check_result(libc.syscall(_SYS_OPEN_TREE, opened, b"", flags))


def attach_mount(mount: int, target: int) -> None:
    """Hang a mount of `clone_mount` on what is open, in the calling thread's mount namespace."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    check_result(libc.syscall(_SYS_MOVE_MOUNT, mount, b"", target, b"", flags))


def make_private(mount: int, *, readonly: bool = False) -> None:
    """Have what is mounted on a mount, or below, show nowhere else; perhaps make it read-only: mount_setattr(2)."""
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY if readonly else 0, 0, MS_PRIVATE, 0)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    size = ctypes.sizeof(attributes)
    check_result(libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", flags, ctypes.byref(attributes), size))


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """Mount something, by the system call of that name."""
    arguments = (_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    check_result(libc.mount(*arguments), target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    check_result(libc.umount2(_bytes(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make a mount the root of the calling thread's mount namespace: the system call of that name."""
    check_result(libc.syscall(_SYS_PIVOT_ROOT, _bytes(new_root), _bytes(put_old)))


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own."""
    check_result(libc.unshare(flags))


def setns(namespace: int, kind: int) -> None:
    """Move the calling thread into a namespace."""
    check_result(libc.setns(namespace, kind))


@contextmanager
def in_network(namespace: int) -> Iterator[None]:
    """Have the calling thread, and no other, in a network namespace. A socket stays in the one that it was made in."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


@contextmanager
def acting_as(uid: int, gid: int, groups: Sequence[int]) -> Iterator[None]:
    """Have the calling thread, and no other, look at files as another user does: without a capability, too.

    Nothing below /proc/self can be looked at meanwhile. See credentials(7).
    """
    before = os.getgroups(), os.getegid(), os.geteuid()
    try:
        _set_credentials(groups, gid, uid)
        yield
    finally:
        _set_credentials(*before)


def _set_credentials(groups: Sequence[int], gid: int, uid: int) -> None:
    # The C library's setgroups is for all threads of the process.
    check_result(libc.syscall(_SYS_SETGROUPS, len(groups), (ctypes.c_uint32 * len(groups))(*groups)))
    libc.setfsgid(ctypes.c_uint32(gid))
    libc.setfsuid(ctypes.c_uint32(uid))


def check_executable(opened: int) -> None:
    """Find out whether what is open can be executed, by its permissions and its mount: faccessat2(2)."""
    check_result(libc.syscall(_SYS_FACCESSAT2, opened, b"", os.X_OK, _AT_EACCESS | _AT_EMPTY_PATH))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def check_result(result: int, path: str | None = None) -> int:
    """What a function of the C library has returned; errno, if that is -1, as an OSError."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
