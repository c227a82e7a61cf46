"""Removing what k3s has left on the machine: containers, mounts, network, cgroups, files. Docker's are left alone."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define

from arcbox_guest import linux, mountinfo
from arcbox_guest.errors import GuestError, NotSupportedError
from arcbox_guest.runtime.programs import find_programs
from arcbox_guest.sandboxes.oci.root_files import remove_tree
from arcbox_guest.tools import run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from arcbox_guest.runtime.runtime import ContainerRuntime

log = logging.getLogger(__name__)

T = TypeVar("T")

_NAMESPACE: Final = "k8s.io"
"""Of Kubernetes in containerd; Docker has another one."""

_SANDBOXES: Final = "io.containerd.grpc.v1.cri/sandboxes"
"""What containerd has of pods beside their containers: files, and a mounted /dev/shm. Docker has nothing there."""

_TOOL: Final = 30.0
"""Seconds for one call of ctr, iptables or ip."""

_OUTPUT: Final = 64 * 1024 * 1024
"""Bytes that one of them may print: a cluster of thousands of services has megabytes of rules."""

_LINKS: Final = ("cni0", "flannel.1")
_CHAIN: Final = re.compile(r":((?:KUBE|CNI|FLANNEL)-\S*)")
"""A chain of Kubernetes or its network plugins, as iptables-save(8) declares it."""

_RULE: Final = re.compile(r"KUBE-|CNI-|FLANNEL-|cni0|flannel")
"""In a rule that is theirs."""

_CGROUPS: Final = ("cgroup", "cgroup2")
"""Kinds of file systems: hierarchies of v1 and v2."""

_AGAIN: Final = 0.1
"""Seconds before what could not be removed is tried again."""

_ENDING: Final = 10.0
"""Seconds in which the processes of a cgroup must be gone, or one more of many things that containerd removes."""


@define(eq=False)
class Cleanup:
    """One deletion. Each step may find its work done already."""

    _runtime: ContainerRuntime
    _limiter: trio.CapacityLimiter

    async def run(self) -> None:
        """Remove everything.

        Raises:
            GuestError: something is left; the text says what.
        """
        removed = await self._remove_containers()
        await self._call(_end_cgroups)
        await self._remove_network()
        await self._call(partial(_empty_directories, self._directories()))
        if removed:
            # containerd keeps what it was told of pods in memory, and would go on with what is no more.
            await self._runtime.restart_containerd()

    def _directories(self) -> list[Path]:
        base, state = self._runtime.config.data_base, self._runtime.config.state_dir
        of_pods = [path / "containerd" / _SANDBOXES for path in (base, state)]
        return [base / "rancher" / "k3s", base / "kubelet", base / "cni", *of_pods]

    async def _remove_containers(self) -> bool:
        """Remove containerd's namespace with all that is in it; whether there was one.

        Raises:
            GuestError: it can't be.
        """
        if not await self._call(self._may_have_namespace):
            return False
        await self._runtime.start_containerd()
        if _NAMESPACE not in (await self._ctr("namespaces", "ls", "-q")).split():
            return False
        await self._remove_all("tasks", "--force")
        for kind in ("containers", "images", "snapshots", "content", "leases"):
            await self._remove_all(kind)
        await self._ctr("namespaces", "rm", _NAMESPACE)
        return True

    def _may_have_namespace(self) -> bool:
        """Without data there is none, and containerd need not be started to find that out."""
        return (self._runtime.config.data_base / "containerd").exists()

    async def _remove_all(self, kind: str, *options: str) -> None:
        """Remove all of one kind: one may need another to go first, and containerd itself removes tasks meanwhile.

        Raises:
            GuestError: some can't be removed.
        """
        left = await self._names(kind)
        deadline = trio.current_time() + _ENDING
        while left:
            reason = ""
            for name in left:
                try:
                    await self._ctr(kind, "rm", *options, name)
                except GuestError as error:
                    reason = str(error)
            before, left = left, await self._names(kind)
            if len(left) < len(before):
                deadline = trio.current_time() + _ENDING
            elif left and trio.current_time() > deadline:
                raise GuestError(f"{kind} of containerd can't be removed: {', '.join(left)[:200]}: {reason}")
            elif left:
                await trio.sleep(_AGAIN)

    async def _names(self, kind: str) -> list[str]:
        if kind != "snapshots":
            return (await self._ctr(kind, "ls", "-q")).split()
        lines = (await self._ctr(kind, "ls")).splitlines()[1:]  # the first has the headings
        return [line.split()[0] for line in lines if line.strip()]

    def _find_ctr(self) -> str:
        return find_programs(("ctr",), self._runtime.config.binary_dirs).path

    async def _ctr(self, *arguments: str) -> str:
        return await self._tool(
            await self._call(self._find_ctr),
            "--address",
            self._runtime.config.containerd_socket,
            "--namespace",
            _NAMESPACE,
            *arguments,
        )

    async def _remove_network(self) -> None:
        for link in _LINKS:
            if Path("/sys/class/net", link).exists():  # noqa: ASYNC240  in memory
                await self._tool("ip", "link", "delete", link)
        await self._call(_remove_network_namespaces)
        for family in ("iptables", "ip6tables"):
            with suppress(NotSupportedError):
                await self._remove_chains(family)

    async def _remove_chains(self, family: str) -> None:
        """All others' rules stay where they are: only what is named is changed."""
        while True:
            saved = await self._tool(f"{family}-save")
            changes = removal_of_chains(saved)
            if not changes:
                return
            path = await self._call(partial(_write_temporary, self._runtime.config.state_dir, changes))
            try:
                await self._tool(f"{family}-restore", "--noflush", str(path))
            finally:
                path.unlink(missing_ok=True)

    async def _tool(self, *argv: str) -> str:
        result = await run_tool(*argv, timeout=_TOOL, limiter=self._limiter, kept=_OUTPUT)
        if result.status:
            raise GuestError(f"{' '.join(argv)} failed: {result.last_line}")
        return result.output

    async def _call(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=True)


def removal_of_chains(saved: str) -> str:
    """What `iptables-restore --noflush` takes to remove the chains and rules of Kubernetes; empty if there are none.

    Args:
        saved: what iptables-save printed.
    """
    parts = []
    for table in saved.split("COMMIT"):
        lines = [line for line in table.splitlines() if line and not line.startswith("#")]
        name = next((line for line in lines if line.startswith("*")), "")
        chains = [match[1] for line in lines if (match := _CHAIN.match(line))]
        rules = [line for line in lines if line.startswith("-A ") and _RULE.search(line)]
        rules = [f"-D {rule[3:]}" for rule in rules if rule.split()[1] not in chains]
        if chains or rules:
            flush = [f":{chain} - [0:0]" for chain in chains]
            parts += [name, *flush, *rules, *(f"-X {chain}" for chain in chains), "COMMIT"]
    return "".join(f"{line}\n" for line in parts)


def _write_temporary(directory: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(dir=directory)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return Path(name)


def kill_session(session: int) -> None:
    """Kill the processes that the leader of a session, which has ended, has left in it: helpers of k3s."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError), _opened_pidfd(int(entry.name)) as pidfd:
                if os.getsid(int(entry.name)) == session:  # asked with the descriptor open: it is that process
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _remove_network_namespaces() -> None:
    for path in Path("/run/netns").glob("cni-*"):
        with suppress(OSError):
            linux.unmount(str(path), linux.MNT_DETACH)
        path.unlink(missing_ok=True)


def _end_cgroups() -> None:
    """Kill what is in the cgroups of pods, and remove them, in every hierarchy.

    Only at its top: those of a cluster in a container are below the container's.
    """
    roots = [mount.target for mount in mountinfo.mounts(mountinfo.OWN.read_bytes()) if mount.kind in _CGROUPS]
    found = [path for root in roots for path in Path(root).glob("kubepods*")]
    deadline = time.monotonic() + _ENDING
    for top in found:
        while pids := list(_processes(top)):
            for pid in pids:
                with suppress(OSError), _opened_pidfd(pid) as pidfd:
                    if pid in _processes(top):  # a number may be another process's by now
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise GuestError(f"processes of pods can't be killed: {pids[:10]}")
            time.sleep(0.01)
        for directory in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with suppress(FileNotFoundError):
                directory.rmdir()
        with suppress(FileNotFoundError):
            top.rmdir()


def _processes(cgroup: Path) -> Iterator[int]:
    for path in cgroup.rglob("cgroup.procs"):
        with suppress(OSError):
            yield from map(int, path.read_text().split())


@contextmanager
def _opened_pidfd(pid: int) -> Iterator[int]:
    """A descriptor of a process. Raises ProcessLookupError: there is none."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _empty_directories(directories: list[Path]) -> None:
    """Unmount what is mounted in directories, and remove what is in them; links are removed and not followed.

    A directory itself stays, and what is mounted on it when that is the data volume.

    Raises:
        GuestError: it can't be done.
    """
    for given in directories:
        if not given.is_dir():
            continue
        directory = given.resolve()  # mounts are known by their real paths
        _unmount_below(directory)
        try:
            for path in directory.iterdir():
                if path.is_dir() and not path.is_symlink():
                    remove_tree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise GuestError(f"{directory} can't be emptied: {error}") from error


def _unmount_below(directory: Path) -> None:
    """The kubelet mounts its directory on itself as well: a mount there of the same file system as its parent's.

    Raises:
        GuestError: something is still mounted below: its files may be anybody's, and must not be removed.
    """
    inside = f"{directory}/"
    targets = _mount_targets()
    for target in reversed([target for target in targets if target.startswith(inside)]):
        with suppress(OSError):
            linux.unmount(target, linux.MNT_DETACH)
    for number in range(targets.count(str(directory)), 0, -1):
        if number > 1 or directory.stat().st_dev == directory.parent.stat().st_dev:
            linux.unmount(str(directory), linux.MNT_DETACH)
    left = [target for target in _mount_targets() if target.startswith(inside)]
    if left:
        raise GuestError(f"{left[0]} can't be unmounted")


def _mount_targets() -> list[str]:
    return [mount.target for mount in mountinfo.mounts(mountinfo.OWN.read_bytes())]
