"""The cgroups of one sandbox: its processes as a group, and what they use.

Below cgroup2's mount point:

    <name>/<id>            the init; with cgroup2 alone, the limits are here
    <name>/<id>/p/<n>      one process that was run, and its descendants
    <name>/.clients/…      with cgroup2 alone: the runtime's clients, which must not count as the sandbox's

In hybrid the runtime does not touch cgroup2, so its client starts in p/<n>, and what it starts inherits that. With
cgroup2 alone the runtime is told to put the process into p/<n>. In either case a process is in one of both places
from its first moment, and killing first the one and then the other leaves nothing.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import field, frozen

from arcbox_guest.errors import GuestError, TimedOutError
from arcbox_guest.sandboxes.model import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from arcbox_guest.sandboxes.oci.hierarchies import Hierarchies

CLIENTS: Final = ".clients"

_FREEZE: Final = "cgroup.freeze"

_FREEZING: Final = 10.0
"""Seconds in which processes must be frozen: usually 0.01."""

_LEFT_BEHIND: Final = "trusted.arcbox.left_behind"

_PATIENCE: Final = 10.0
"""Seconds in which processes that were killed must be gone."""

_STARTING: Final = 2.0
"""Seconds in which a process that is being started should have been: usually 0.01."""

_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.ESRCH)
"""A cgroup, or process, that has ceased to be there; ENODEV when a file of it is still open."""


@frozen
class ProcessGroup:
    """A process, its descendants, and the client of the runtime that started it."""

    runtime_name: str | None
    """For the runtime, which has to put the process there; None where it inherits the place of its client."""

    path: Path
    entry: Path
    """Where the client has to be put before it starts anything."""

    def create(self) -> None:
        self.path.mkdir()  # without its parents: the sandbox may have been destroyed meanwhile, and stays so
        if self.entry != self.path:
            self.entry.mkdir(parents=True)

    @property
    def procs(self) -> Path:
        """The file that takes the process id of the client, or 0 for that of who writes it."""
        return self.entry / "cgroup.procs"

    def enter(self, pid: int) -> None:
        """Put the client there. It, and what it starts, is no more worth keeping than any process of the guest."""
        self.procs.write_text(str(pid))
        adjustment = Path(f"/proc/{pid}/oom_score_adj")
        if int(adjustment.read_text()) < 0:  # the agent's own, inherited; to lower one takes a capability
            adjustment.write_text("0")

    def kill(self) -> None:
        """Kill them all. What has been removed is killed already."""
        kill(self.entry)
        if self.entry != self.path:
            kill(self.path)

    def has_started(self, is_starting: Callable[[int], bool]) -> bool:
        """Whether one of its processes is what it shall be: in the sandbox, and not the runtime's any more."""
        return any(not is_starting(pid) for pid in self.inside())

    def inside(self) -> list[int]:
        """Its processes that are in the sandbox already."""
        own = os.stat("/proc/self/ns/pid").st_ino
        return [pid for pid in _pids(self.path) if _pid_namespace(pid) not in (own, None)]

    def keep(self) -> None:
        """Mark it as what a process that has ended left behind, which a restart of the agent does not end.

        In an extended attribute: a cgroup has no other place for it. Where there are none, a restart does end it.
        """
        with suppress(OSError):
            os.setxattr(self.path, _LEFT_BEHIND, b"")

    def is_kept(self) -> bool:
        try:
            return _LEFT_BEHIND in os.listxattr(self.path)
        except OSError:
            return False

    def remove(self) -> bool:
        """Whether it could be removed: a process that is left behind keeps it."""
        return all([_remove(self.entry), _remove(self.path)])


@frozen
class SandboxCgroups:
    """The cgroups of a sandbox, whether they are there or not."""

    _hierarchies: Hierarchies
    _name: str
    """Of the cgroup that has all sandboxes of the driver, in every hierarchy."""

    _id: str
    tree: Path = field(init=False)
    """All processes of the sandbox are in it or below."""

    processes: Path = field(init=False)
    """All but the init are below."""

    @tree.default
    def _tree(self) -> Path:
        return self._hierarchies.unified / self._name / self._id

    @processes.default
    def _processes(self) -> Path:
        return self.tree / "p"

    @property
    def _clients(self) -> Path:
        return self._hierarchies.unified / self._name / CLIENTS / self._id

    @property
    def runtime_path(self) -> str:
        """For the runtime: in the hierarchies with the controllers."""
        return f"/{self._name}/{self._id}"

    def create(self) -> ProcessGroup:
        """Have a group for the client that starts the init, which inherits it in hybrid."""
        if self._hierarchies.hybrid:
            group = ProcessGroup(None, self.tree, self.tree)
        else:
            group = ProcessGroup(None, self._clients, self._clients)
        group.path.mkdir(parents=True)
        return group

    def adopt(self, init: int) -> None:
        """Have the init, which the runtime has started, in the group."""
        self.processes.mkdir(parents=True, exist_ok=True)
        if self._hierarchies.hybrid:
            (self.tree / "cgroup.procs").write_text(str(init))

    def has_init(self, pid: int) -> bool:
        """Whether a process is the sandbox's init."""
        try:
            return pid in map(int, (self.tree / "cgroup.procs").read_text().split())
        except OSError:
            return False

    def groups(self) -> Mapping[int, ProcessGroup]:
        """Those that are there, by their numbers."""
        return {int(group.path.name): group for group in self._groups()}

    def group(self, number: int) -> ProcessGroup:
        path = self.processes / str(number)
        if self._hierarchies.hybrid:
            return ProcessGroup(None, path, path)
        return ProcessGroup(f"p/{number}", path, self._clients / str(number))

    async def terminate(self, is_starting: Callable[[int], bool]) -> None:
        """Send SIGTERM to all but the init. Not to the runtime's clients, who would end, and lose the exit code.

        Args:
            is_starting: whether a process is still the runtime's, which is about to become what it shall run. It is
                waited for: the signal is for that, and would make the runtime fail.
        """
        pending = await trio.to_thread.run_sync(lambda: list(self._groups()))
        deadline = trio.current_time() + _STARTING
        while pending:
            patient = trio.current_time() < deadline
            pending = await trio.to_thread.run_sync(_terminate, pending, is_starting if patient else lambda _pid: False)
            await trio.sleep(0.002)

    async def empty(self) -> None:
        """Wait until there is no process but the init."""
        await _empty(self.processes)

    async def freeze(self) -> None:
        """Freeze all, and wait until none runs any more. Cancelled, or failing, it leaves them running.

        The freezer of cgroup2 does it in hybrid as well: all that runs in the sandbox is there. What it has frozen can
        be killed, which cgroup v1's can't.

        Raises:
            TimedOutError: some can't be frozen.
            OSError: the sandbox is gone.
        """
        (self.tree / _FREEZE).write_text("1")
        try:
            with trio.fail_after(_FREEZING):
                await _until(self.tree, "frozen 1")
        except trio.TooSlowError:
            self.thaw()
            raise TimedOutError(
                f"sandbox {self._id} can't be paused: a process in it waits for a device, say, and can't be frozen"
            ) from None
        except BaseException:
            self.thaw()
            raise

    def thaw(self) -> None:
        """Let all go on. Raises OSError: the sandbox is gone."""
        (self.tree / _FREEZE).write_text("0")

    def frozen(self) -> bool:
        """Whether all are frozen, or are about to be."""
        try:
            return bool(_number(self.tree / _FREEZE))
        except OSError:
            return False

    async def kill(self) -> None:
        """Kill all, and wait until they are gone.

        Raises:
            GuestError: some can't be killed: they wait for a device, say.
        """
        with trio.move_on_after(_PATIENCE):
            await self._kill()
            return
        left = ", ".join(map(str, self._stragglers()))
        raise GuestError(f"processes of sandbox {self._id} can't be killed: {left}")

    async def remove(self) -> None:
        """Remove all that is there, of a sandbox that was killed.

        Raises:
            GuestError: the kernel does not let go of it.
        """
        deadline = time.monotonic() + _PATIENCE
        while left := [path for path in self._places() if not _remove_tree(path)]:
            # What was killed may need a moment more to leave the cgroups of v1, which tell nobody.
            if time.monotonic() > deadline:
                raise GuestError(f"the cgroup {left[0]} can't be removed")
            await trio.sleep(0.005)

    def exist(self) -> bool:
        return any(path.exists() for path in self._places())

    def statistics(self) -> Statistics:
        """What the sandbox uses.

        Raises:
            OSError: it is gone.
        """
        if not self._hierarchies.hybrid:
            microseconds = _values(self.tree / "cpu.stat")["usage_usec"]
            memory = _number(self.tree / "memory.current") - _values(self.tree / "memory.stat")["inactive_file"]
            return Statistics(
                cpu_seconds=microseconds / 1e6, memory_bytes=max(memory, 0), processes=len(list(_pids(self.tree)))
            )
        memory_cgroup = self._v1("memory")
        reclaimable = _values(memory_cgroup / "memory.stat")["total_inactive_file"]
        memory = _number(memory_cgroup / "memory.usage_in_bytes") - reclaimable
        return Statistics(
            cpu_seconds=_number(self._v1("cpuacct") / "cpuacct.usage") / 1e9,
            memory_bytes=max(memory, 0),
            processes=len(list(_pids(self._v1("pids")))),
        )

    def out_of_memory_kills(self) -> int:
        """How many processes the memory limit has cost; 0 when that can't be found out."""
        hybrid = self._hierarchies.hybrid
        try:
            path = self._v1("memory") / "memory.oom_control" if hybrid else self.tree / "memory.events"
            return _values(path).get("oom_kill", 0)
        except (GuestError, OSError):
            return 0

    def _v1(self, controller: str) -> Path:
        return self._hierarchies.controller(controller) / self._name / self._id

    def _groups(self) -> Iterator[ProcessGroup]:
        """Those that are there."""
        with suppress(FileNotFoundError):
            for path in self.processes.iterdir():
                if path.name.isdecimal():
                    yield self.group(int(path.name))

    def _places(self) -> list[Path]:
        """Every directory that the sandbox may have in any hierarchy."""
        v1 = [path / self._name / self._id for path in dict.fromkeys(self._hierarchies.v1.values())]
        return [self.tree, self._clients, *v1]

    async def _kill(self) -> None:
        kill(self._clients)
        kill(self.tree)
        await _empty(self.tree)
        # What a former agent had begun to create, and not yet adopted, is in the cgroups of the runtime alone.
        while stragglers := self._stragglers():
            _signal(stragglers, signal.SIGKILL, self._stragglers)
            await trio.sleep(0.005)

    def _stragglers(self) -> list[int]:
        return sorted({pid for path in self._places() for pid in _pids(path)})


def remove_parents(hierarchies: Hierarchies, name: str) -> None:
    """Remove the cgroups that have all sandboxes of a driver, where they are empty."""
    for root in (hierarchies.unified, *dict.fromkeys(hierarchies.v1.values())):
        _remove(root / name / CLIENTS)
        _remove(root / name)


def _terminate(groups: Sequence[ProcessGroup], is_starting: Callable[[int], bool]) -> list[ProcessGroup]:
    """Send SIGTERM to the processes of groups, but for those where one is just being started, which are returned."""
    starting = []
    for group in groups:
        pids = group.inside()
        clients = any(_pids(group.entry))
        if (clients and not pids) or any(map(is_starting, pids)):
            starting.append(group)
            continue
        _signal(pids, signal.SIGTERM, group.inside)
        _signal(list(filter(_wants_hangup, pids)), signal.SIGHUP, group.inside)
    return starting


def _signal(pids: Collection[int], number: int, members: Callable[[], Collection[int]]) -> None:
    """Send processes a signal, unless they have left: a number may be another process's by now."""
    with ExitStack() as stack:
        opened = {}
        for pid in pids:
            with suppress(ProcessLookupError):
                opened[pid] = os.pidfd_open(pid)
                stack.callback(os.close, opened[pid])
        still = set(members())
        for pid, pidfd in opened.items():
            with suppress(ProcessLookupError):
                if pid in still:
                    signal.pidfd_send_signal(pidfd, number)


def _wants_hangup(pid: int) -> bool:
    """Whether SIGHUP is what ends a process: the leader of a terminal's session that does not die of SIGTERM.

    Interactive shells are such. What handles SIGTERM, and not SIGHUP, ends in its own time.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            _state, _parent, _group, session, terminal = file.read().rpartition(b")")[2].split()[:5]
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            status = dict(line.split(b":", 1) for line in file.read().splitlines())
    except (OSError, ValueError):
        return False
    ignores_term = int(status[b"SigIgn"], 16) & 1 << signal.SIGTERM - 1
    catches_hangup = int(status[b"SigCgt"], 16) & 1 << signal.SIGHUP - 1
    return int(session) == pid and int(terminal) != 0 and bool(ignores_term or catches_hangup)


def _pid_namespace(pid: int) -> int | None:
    """The inode of a process's pid namespace; None if it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def kill(path: Path) -> None:
    """Kill all that is in a cgroup of cgroup2, and below it; one that is not there is empty."""
    try:
        (path / "cgroup.kill").write_text("1")
    except OSError as error:
        if error.errno not in _GONE:
            raise


async def _empty(path: Path) -> None:
    """Wait until no process is in a cgroup of cgroup2, nor below; one that is not there is empty."""
    await _until(path, "populated 0")


async def _until(path: Path, state: str) -> None:
    """Wait until a cgroup of cgroup2 is in a state, a line of its cgroup.events, or is not there any more."""
    try:
        events = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    try:
        # The file says of a change by EPOLLPRI, and is readable all the time: an epoll of its own, for that alone, is
        # readable for Trio's when there is one.
        with closing(select.epoll()) as changes:
            changes.register(events, select.EPOLLPRI)
            while state.encode() not in os.pread(events, 4096, 0):
                await trio.lowlevel.wait_readable(changes.fileno())
    except OSError as error:
        if error.errno not in _GONE:
            raise
    finally:
        os.close(events)


def _pids(path: Path) -> Iterator[int]:
    """Of the processes in a cgroup and below."""
    for directory, _, _ in os.walk(path):
        with suppress(OSError), open(f"{directory}/cgroup.procs", encoding="ascii") as procs:
            yield from map(int, procs)


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError as error:
        return error.errno in _GONE
    return True


def _remove_tree(path: Path) -> bool:
    for directory, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)
    return _remove(path)


def _number(path: Path) -> int:
    return int(path.read_text())


def _values(path: Path) -> dict[str, int]:
    """A file of lines that have a name and a number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value in lines if value.isdecimal()}
