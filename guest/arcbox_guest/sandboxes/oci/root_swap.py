"""Giving a sandbox that runs another root file system, with all that is mounted below the old one."""

from __future__ import annotations

import os
import re
import threading
from typing import Final

import outcome

from arcbox_guest import linux
from arcbox_guest.sandboxes.oci.root_files import open_path

_NO_LINK: Final = os.O_PATH | os.O_NOFOLLOW


def swap_root(init: int, new_root: int) -> int:
    """Replace the root mount of a sandbox's mount namespace. Blocks, for a millisecond.

    pivot_root(2) moves the root and working directory of every process there that stands in the old root. Whatever
    else is open in the old root file system stays open there: have nothing but the init run meanwhile.

    Args:
        init: a process in the namespace; as the caller's /proc has it.
        new_root: a mount that hangs nowhere, which has the mount points that the old root has.

    Returns:
        The old root, mounted nowhere any more. Closing it ends its file system: some 0.1 s after 10,000 files.

    Raises:
        OSError: it can't be done; everything is as before.
    """
    mount_points = _below_root(f"/proc/{init}/mountinfo")
    namespace = os.open(f"/proc/{init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    results: list[outcome.Maybe[int]] = []
    try:
        # A thread of its own, which ends with it: it can't come back from there.
        def swap() -> None:
            results.append(outcome.capture(_swap, namespace, new_root, mount_points))

        thread = threading.Thread(target=swap)
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    return results[0].unwrap()


def _swap(namespace: int, new_root: int, mount_points: list[str]) -> int:
    linux.unshare(linux.CLONE_FS)
    linux.setns(namespace, linux.CLONE_NEWNS)  # from here on `/` is the sandbox's
    with open_path("/") as old_root:
        linux.attach_mount(new_root, old_root)
        os.fchdir(new_root)
        try:
            for path in mount_points:
                # `/` of this thread is the old root still, below what was just mounted on it.
                with open_path(path, _NO_LINK) as mounted, open_path(f".{path}", _NO_LINK) as target:
                    copy = linux.clone_mount(mounted)
                    try:
                        linux.attach_mount(copy, target)
                    finally:
                        os.close(copy)
            linux.pivot_root(".", ".")
        except BaseException:
            os.fchdir(new_root)
            linux.unmount(".", linux.MNT_DETACH)
            raise
        linux.unmount(".", linux.MNT_DETACH)  # the old root, which the call has put over the new one: pivot_root(2)
        return os.dup(old_root)


def _below_root(mountinfo: str) -> list[str]:
    """The mount points that hang directly on the root mount of a namespace: proc_pid_mountinfo(5)."""
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line.split(" ", 5)[:5] for line in file]
    root = [number for number, _, _, _, path in mounts if path == "/"][-1]
    below = [path for _, parent, _, _, path in mounts if parent == root and path != "/"]
    return [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path) for path in below]
