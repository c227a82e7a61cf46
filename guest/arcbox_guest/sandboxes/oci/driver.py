"""The driver `oci`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import define, evolve, field, frozen

from arcbox_guest import linux, storage_probe
from arcbox_guest.child import PidFd, start_time
from arcbox_guest.errors import ConflictError, GuestError, NotSupportedError, UnavailableError
from arcbox_guest.network.addresses import Lease
from arcbox_guest.sandboxes.detached import DEFAULT_KEPT
from arcbox_guest.sandboxes.oci import bundle, cgroups, etc, hierarchies, images, users
from arcbox_guest.sandboxes.oci.cgroups import CLIENTS, SandboxCgroups
from arcbox_guest.sandboxes.oci.detached import Sessions
from arcbox_guest.sandboxes.oci.images import Images
from arcbox_guest.sandboxes.oci.layers import LONGEST_CHAIN, MANY_LAYERS, Layers, chain_of, new_name
from arcbox_guest.sandboxes.oci.mounts import Sources, Stage
from arcbox_guest.sandboxes.oci.namespace import MountNamespace
from arcbox_guest.sandboxes.oci.recording import Recorder
from arcbox_guest.sandboxes.oci.root_files import open_path, remove_tree
from arcbox_guest.sandboxes.oci.root_swap import swap_root
from arcbox_guest.sandboxes.oci.runtime import Runtime
from arcbox_guest.sandboxes.oci.sandbox import LiveSandbox
from arcbox_guest.sandboxes.oci.starting import Starter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from arcbox_guest.network.network import SandboxNetwork
    from arcbox_guest.sandboxes.detached import DetachedProcess, DetachedSpec
    from arcbox_guest.sandboxes.driver import Process
    from arcbox_guest.sandboxes.model import ExecSpec, Spec, Statistics
    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup
    from arcbox_guest.sandboxes.oci.hierarchies import Hierarchies
    from arcbox_guest.sandboxes.oci.images import Image

log = logging.getLogger(__name__)

_TOOLS: Final = "/arcbox/runtime/bin"
_SYSTEM: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec/podman"

_INIT: Final = "catatonit"

_CREATIONS: Final = 128
"""Sandboxes that are created at the same time; those whose storage hangs count until it answers."""

_OWN_FILES: Final = 32

_ADOPTIONS: Final = 4
"""At the same time: it is Python's own work, and more threads would only wait for each other."""

_T = TypeVar("_T")


@frozen
class Equipment:
    """What is needed for any sandbox; it is there from the first one on."""

    hierarchies: Hierarchies
    unified: int
    """cgroup2's mount, opened: so it has a path that is the same in every mount namespace."""

    namespace: MountNamespace
    runtime: Runtime
    images: Images
    recorder: Recorder
    starter: Starter
    init: str

    async def close(self) -> None:
        await self.starter.close()
        await trio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        self.recorder.close()
        self.namespace.close()
        self.runtime.close()
        os.close(self.unified)


@define(eq=False)
class OciDriver:
    """Sandboxes that an OCI runtime isolates. To be closed at the end; sandboxes that then run go on."""

    data_dir: Path
    """For all files of all sandboxes; on a file system that can be an overlay's upper layer. Ours alone."""

    runtime: str = "crun"
    """Name or path: crun or runc."""

    init: str = ""
    """The path of a static program that reaps and waits when called with -P; empty finds catatonit."""

    max_processes: int = 1024
    """Processes, and threads, that may run in a sandbox at the same time."""

    network: SandboxNetwork | None = None
    """Connects sandboxes that have a lease."""

    no_new_privileges: bool = False
    """Whether set-user-ID programs and file capabilities give nothing in them."""

    kept: int = DEFAULT_KEPT
    """Bytes that are kept of each channel of a detached process."""

    name: str = field(init=False, default="oci")
    _equipment: Equipment | None = field(init=False, default=None)
    _equipping: trio.Lock = field(init=False, factory=trio.Lock)
    _storage: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_CREATIONS))
    """Of calls on what a request has named: storage that may hang."""

    _adopting: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_ADOPTIONS))
    _own_files: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_OWN_FILES))
    _live: dict[str, LiveSandbox] = field(init=False, factory=dict)
    _ids: set[str] = field(init=False, factory=set)
    """Of the sandboxes that live, or are being created or destroyed."""

    _images: dict[str, Image] = field(init=False, factory=dict)
    """By the id of the sandbox that uses it."""

    _merging: trio.Lock = field(init=False, factory=trio.Lock)
    _being_made: set[str] = field(init=False, factory=set)
    """Layers into which others are being merged."""

    _cgroup: str = field(init=False)
    """The name of the cgroup that has all sandboxes: a driver of the same directory has the same, and no other."""

    @_cgroup.default
    def _default_cgroup(self) -> str:
        path = os.path.realpath(self.data_dir)
        return f"arcbox-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()

    async def check(self, spec: Spec) -> None:
        await _storage_answers(spec)
        await trio.to_thread.run_sync(_check, spec, limiter=self._storage, abandon_on_cancel=True)

    async def create(self, spec: Spec) -> Mapping[str, str]:
        directory = self._directory(spec.id)
        if spec.id in self._ids or directory.exists():
            raise ConflictError(f"sandbox {spec.id} exists already, or something is left of one")
        equipment = await self._equip()
        self._ids.add(spec.id)
        try:
            await self._create_from(equipment, spec)
        except BaseException:
            with trio.CancelScope(shield=True):  # each step of it has a deadline
                await self._clear_away(spec.id)
            raise
        return self._live[spec.id].facts()

    async def adopt(self, spec: Spec, facts: Mapping[str, str]) -> None:
        equipment = await self._equip()
        with _translated(f"sandbox {spec.id} can't be adopted"):
            # Not abandoned: it asks nothing but the kernel, and what it opens is to be closed.
            live = await trio.to_thread.run_sync(self._adopt, equipment, spec, facts, limiter=self._adopting)
        self._ids.add(spec.id)
        self._live[spec.id] = live

    @asynccontextmanager
    async def process(self, sandbox_id: str, command: ExecSpec) -> AsyncIterator[Process]:
        async with self._find(sandbox_id).process(command) as process:
            yield process

    async def start_detached(self, sandbox_id: str, spec: DetachedSpec) -> DetachedProcess:
        return await self._find(sandbox_id).start_detached(spec, await self._sessions(sandbox_id))

    async def detached(self, sandbox_id: str) -> Sequence[DetachedProcess]:
        sessions = await self._sessions(sandbox_id)
        return await self._in_thread(sessions.find)

    def root(self, sandbox_id: str) -> AbstractContextManager[int]:
        return self._find(sandbox_id).root()

    def network_namespace(self, sandbox_id: str) -> AbstractContextManager[int]:
        return self._find(sandbox_id).network_namespace()

    async def pause(self, sandbox_id: str) -> None:
        sandbox = self._find(sandbox_id)
        sandbox.check_alive()
        with _translated(f"sandbox {sandbox_id} can't be paused"):
            await sandbox.cgroups.freeze()

    async def resume(self, sandbox_id: str) -> None:
        sandbox = self._find(sandbox_id)
        with _translated(f"sandbox {sandbox_id} can't be resumed"):
            sandbox.cgroups.thaw()

    def is_paused(self, sandbox_id: str) -> bool:
        sandbox = self._live.get(sandbox_id)
        return sandbox is not None and sandbox.cgroups.frozen()

    async def terminate(self, sandbox_id: str) -> None:
        await self._find(sandbox_id).terminate()

    async def idle(self, sandbox_id: str) -> None:
        await self._find(sandbox_id).cgroups.empty()

    async def ended(self, sandbox_id: str) -> str:
        return await self._find(sandbox_id).ended()

    async def stop(self, sandbox_id: str) -> None:
        if sandbox_id in self._live:
            self._live[sandbox_id].stopped = True
        with _translated(f"sandbox {sandbox_id} can't be stopped"):
            await self._stop(await self._equip(), sandbox_id)

    async def destroy(self, sandbox_id: str) -> None:
        self._ids.add(sandbox_id)
        await self.stop(sandbox_id)
        with _translated(f"sandbox {sandbox_id} can't be removed"):
            await self._in_thread(self._remove_files, self._directory(sandbox_id))
        if sandbox_id in self._images:
            await (await self._equip()).images.release(self._images.pop(sandbox_id))
        if sandbox_id in self._live:
            self._live.pop(sandbox_id).close()
        self._ids.remove(sandbox_id)
        if not self._ids:
            cgroups.remove_parents((await self._equip()).hierarchies, self._cgroup)

    async def statistics(self, sandbox_id: str) -> Statistics:
        sandbox = self._find(sandbox_id)
        sandbox.check_alive()
        try:
            return await self._in_thread(sandbox.cgroups.statistics)
        except OSError as error:
            raise UnavailableError(f"sandbox {sandbox_id} does not run any more") from error

    def out_of_memory_kills(self, sandbox_id: str) -> int:
        sandbox = self._live.get(sandbox_id)
        return sandbox.cgroups.out_of_memory_kills() if sandbox else 0

    async def checkpoint(self, sandbox_id: str) -> tuple[str, ...]:
        sandbox, equipment = self._find(sandbox_id), await self._equip()
        sandbox.check_alive()
        with _translated(f"sandbox {sandbox_id} can't be checkpointed"):
            _, *below = await self._in_thread(chain_of, sandbox.init)
            await self._merged(below, LONGEST_CHAIN)  # which the new root file system will have
            sources = await trio.to_thread.run_sync(
                Sources.open, sandbox.spec.rootfs, (), limiter=self._storage, abandon_on_cancel=True
            )
            lower = await self._lower(equipment, sandbox.spec, sources)
            return await equipment.namespace.run_abandonable(
                self._checkpoint, sandbox, lower, sources, limiter=self._storage
            )

    async def flatten(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        with _translated("layers can't be merged"):
            return await self._merged(layers, MANY_LAYERS)

    async def _merged(self, chain: Sequence[str], most: int) -> tuple[str, ...]:
        """A chain that shows the same; merged, if there are more than `most` layers in it."""
        short = await self._shortened(chain)
        if len(short) <= most:
            return short
        async with self._merging:
            short = await self._shortened(chain)  # others may have merged the same layers meanwhile
            return short if len(short) <= most else (await self._merge(short),)

    async def _shortened(self, chain: Sequence[str]) -> tuple[str, ...]:
        return tuple(await self._in_thread(self._layers.shortened, chain))

    async def _merge(self, chain: Sequence[str]) -> str:
        name = new_name()
        self._being_made.add(name)
        try:
            await self._in_thread(self._layers.merge, chain, name)
            await self._in_thread(self._layers.supersede, chain[0], name)
        except trio.Cancelled:
            raise  # a thread may still make it: the next agent removes it
        except BaseException:
            self._being_made.remove(name)
            raise
        self._being_made.remove(name)
        return name

    async def remove_unused(self, used: Callable[[], Collection[str]]) -> None:
        with _translated("layers that nobody uses can't be removed"):
            found, of_sandboxes = await self._in_thread(self._layers.look)
            await self._in_thread(self._layers.remove, found, {*of_sandboxes, *self._being_made, *used()})

    async def listening(self, sandbox_id: str) -> set[int]:
        sandbox = self._find(sandbox_id)
        sandbox.check_alive()
        return await self._in_thread(sandbox.listening)

    async def existing(self) -> Sequence[str]:
        return await self._in_thread(self._existing)

    async def close(self) -> None:
        """Let go of everything that is not a sandbox's. Sandboxes that run go on running."""
        equipment, self._equipment = self._equipment, None
        for sandbox in self._live.values():
            sandbox.close()
        self._live.clear()
        self._images.clear()  # they were mounted in the namespace that ends here
        if equipment is not None:
            cgroups.remove_parents(equipment.hierarchies, self._cgroup)
            await equipment.close()

    async def _equip(self) -> Equipment:
        async with self._equipping:
            if self._equipment is None:
                with _translated("sandboxes can't be had on this machine"):
                    self._equipment = await trio.to_thread.run_sync(self._make_equipment)
            return self._equipment

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function that touches our own files and cgroups only: disks can be slow, and can die."""
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._own_files, abandon_on_cancel=True)

    def _make_equipment(self) -> Equipment:
        runtime, init = _find_tool(self.runtime, "sandbox.runtime"), _find_tool(self.init or _INIT, "sandbox.init")
        found = hierarchies.find()
        for name in ("images", "layers", "sandboxes", "runtime"):
            (self.data_dir / name).mkdir(parents=True, exist_ok=True)
        namespace = MountNamespace(str(found.unified) if found.hybrid else "")
        client = Runtime(runtime, self._runtime_state, namespace)
        unified = os.open(found.unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return Equipment(
            hierarchies=evolve(found, unified=Path(f"/proc/self/fd/{unified}")),
            unified=unified,
            namespace=namespace,
            runtime=client,
            images=Images(self.data_dir / "images", namespace, self._storage),
            recorder=Recorder(self.data_dir.resolve()),
            starter=Starter(namespace, client.sealed),
            init=init,
        )

    async def _create_from(self, equipment: Equipment, spec: Spec) -> None:
        await _storage_answers(spec)
        sources = await trio.to_thread.run_sync(
            Sources.open, spec.rootfs, spec.mounts, limiter=self._storage, abandon_on_cancel=True
        )
        try:
            with _translated(f"sandbox {spec.id} can't be created"):
                await self._create(equipment, spec, sources)
        except trio.Cancelled:
            raise  # a thread may still need them: they are closed with the last reference
        except BaseException:
            sources.close()
            raise
        sources.close()

    async def _create(self, equipment: Equipment, spec: Spec, sources: Sources) -> None:
        lower = await self._lower(equipment, spec, sources)
        stage = Stage(self._directory(spec.id))
        try:
            client = await equipment.namespace.run_abandonable(
                self._prepare, equipment, spec, stage, lower, sources, limiter=self._storage
            )
            init = await equipment.runtime.run(spec.id, stage.directory, client.enter)
        finally:
            with trio.CancelScope(shield=True):
                await equipment.namespace.run(stage.mounts.unmount)
        self._live[spec.id] = self._live_sandbox(equipment, spec, init, PidFd.open(init))
        self._live[spec.id].cgroups.adopt(init)
        if spec.lease and self.network is not None:
            with _opened(f"/proc/{init}/ns/net") as namespace:
                await self.network.connect(Lease.parse(spec.lease), namespace)

    def _adopt(self, equipment: Equipment, spec: Spec, facts: Mapping[str, str]) -> LiveSandbox:
        """Blocks."""
        watch = _open_init(facts, self._cgroups(equipment, spec.id))
        live = self._live_sandbox(equipment, spec, int(facts["init"]), watch)
        try:
            live.adopt_processes()
        except BaseException:
            watch.discard()
            raise
        return live

    def _live_sandbox(self, equipment: Equipment, spec: Spec, init: int, watch: PidFd) -> LiveSandbox:
        return LiveSandbox(
            spec=spec,
            cgroups=self._cgroups(equipment, spec.id),
            directory=self._directory(spec.id),
            init=init,
            watch=watch,
            runtime=equipment.runtime,
            namespace=equipment.namespace,
            no_new_privileges=self.no_new_privileges,
        )

    async def _lower(self, equipment: Equipment, spec: Spec, sources: Sources) -> Path | int:
        """The root file system below all layers: a directory in the driver's namespace, or a mount."""
        if sources.rootfs_is_directory:
            return sources.rootfs
        if spec.id not in self._images:
            image = await equipment.images.acquire(sources.rootfs, sources.rootfs_status, spec.rootfs)
            self._images[spec.id] = image
        return self._images[spec.id].path

    def _checkpoint(self, sandbox: LiveSandbox, lower: Path | int, sources: Sources) -> tuple[str, ...]:
        """Freeze the layers of a sandbox, and have it go on with a new one above them."""
        below = self._layers.shortened(chain_of(sandbox.init))
        upper = self._layers.add_for(sandbox.directory, below)
        stage = Stage(sandbox.directory)
        try:
            stage.mount_root(lower, self._layers, upper, below)
            with open_path(str(stage.rootfs)) as mounted:
                new_root = linux.clone_mount(mounted)
            try:
                old_root = swap_root(sandbox.init, new_root)
                # The close frees what the kernel keeps of each file: the checkpoint need not wait for that.
                threading.Thread(target=os.close, args=(old_root,), daemon=True).start()
            finally:
                os.close(new_root)
        finally:
            stage.mounts.unmount()
            sources.close()
        self._layers.freeze(below)
        return tuple(below)

    def _remove_files(self, directory: Path) -> None:
        self._layers.remove_of(directory)
        remove_tree(directory)

    def _prepare(
        self, equipment: Equipment, spec: Spec, stage: Stage, lower: Path | int, sources: Sources
    ) -> ProcessGroup:
        """Have everything ready for the runtime; the group for its client."""
        stage.directory.mkdir(mode=0o700)
        upper = self._layers.add_for(stage.directory, spec.layers)
        stage.mount_root(lower, self._layers, upper, spec.layers)
        stage.write_etc(self._etc(spec))
        stage.mount_binds(sources.binds, spec.mounts)
        stage.mounts.check()  # here at the latest: another sandbox may have the id by now
        groups = self._cgroups(equipment, spec.id)
        config = bundle.sandbox_config(
            spec,
            rootfs=str(stage.rootfs),
            init=equipment.init,
            cgroups_path=groups.runtime_path,
            max_processes=self.max_processes,
            no_new_privileges=self.no_new_privileges,
        )
        (stage.directory / "config.json").write_text(json.dumps(config))
        return groups.create()

    def _etc(self, spec: Spec) -> Mapping[str, str]:
        if not spec.lease or self.network is None:
            return etc.files(spec.id)
        address = str(Lease.parse(spec.lease).address)
        return etc.files(spec.id, address=address, resolver=self.network.resolver())

    async def _stop(self, equipment: Equipment, sandbox_id: str) -> None:
        groups = self._cgroups(equipment, sandbox_id)
        await groups.kill()
        # The runtime is not asked: there is nothing else that it would remove. `runc delete` waits for zombies, which
        # belong to whoever is PID 1 and may take his time; and a runtime that hangs must not keep a sandbox.
        await self._in_thread(remove_tree, self._runtime_state / sandbox_id)
        await groups.remove()

    async def _clear_away(self, sandbox_id: str) -> None:
        """What a creation that failed has left."""
        try:
            await self.destroy(sandbox_id)
        except GuestError:
            log.exception("sandbox not cleared away", extra={"sandbox": sandbox_id})

    def _existing(self) -> Sequence[str]:
        found = hierarchies.find()
        parents = [root / self._cgroup for root in {found.unified, *found.v1.values()}]
        places = [self.data_dir / "sandboxes", self._runtime_state, *parents]
        return sorted({name for place in places for name in _sandboxes_in(place)})

    def _find(self, sandbox_id: str) -> LiveSandbox:
        if sandbox_id not in self._live:
            raise UnavailableError(f"sandbox {sandbox_id} does not run")
        return self._live[sandbox_id]

    def _cgroups(self, equipment: Equipment, sandbox_id: str) -> SandboxCgroups:
        return SandboxCgroups(equipment.hierarchies, self._cgroup, sandbox_id)

    async def _sessions(self, sandbox_id: str) -> Sessions:
        equipment, live = await self._equip(), self._live.get(sandbox_id)
        return Sessions(
            directory=self._directory(sandbox_id) / "sessions",
            sandbox_id=sandbox_id,
            runtime=equipment.runtime,
            starter=equipment.starter,
            recorder=equipment.recorder,
            kept=self.kept,
            group=self._cgroups(equipment, sandbox_id).group,
            sandbox_is_ending=live.is_ending if live is not None else lambda: True,
            unattended=live.unattended if live is not None else set(),
        )

    def _directory(self, sandbox_id: str) -> Path:
        return self.data_dir / "sandboxes" / sandbox_id

    @property
    def _layers(self) -> Layers:
        return Layers(self.data_dir / "layers", self.data_dir / "sandboxes")

    @property
    def _runtime_state(self) -> Path:
        return self.data_dir / "runtime"


async def _storage_answers(spec: Spec) -> None:
    """Wait until what a sandbox is made of can be opened, or not be."""
    paths = [path for path in (spec.rootfs, *(bind.source for bind in spec.mounts)) if path]
    with _translated(f"the storage of sandbox {spec.id} can't be asked"):
        await storage_probe.until_it_answers(paths)


def _check(spec: Spec) -> None:
    """Raises InvalidArgumentError: something that the sandbox needs is not there. Blocks."""
    with closing(Sources.open(spec.rootfs or "/", spec.mounts)) as sources:
        if not spec.rootfs:  # it will be an image's, when that has been pulled
            return
        if sources.rootfs_is_directory:
            users.find(sources.rootfs, spec.user)
        else:
            images.check(sources.rootfs, spec.rootfs)


def _open_init(facts: Mapping[str, str], groups: SandboxCgroups) -> PidFd:
    """The init that a former agent has started.

    Raises:
        UnavailableError: it has ended. Its number may be another process's by now.
    """
    init = int(facts["init"])
    with suppress(OSError):
        watch = PidFd.open(init)
        with suppress(OSError):
            if start_time(init) == int(facts["started"]) and groups.has_init(init):
                return watch
        watch.discard()
    raise UnavailableError("its init had ended")


def _sandboxes_in(place: Path) -> list[str]:
    try:
        return [path.name for path in place.iterdir() if path.is_dir() and path.name != CLIENTS]
    except FileNotFoundError:  # nothing was ever there, or the last of them is being removed just now
        return []


def _find_tool(name: str, setting: str) -> str:
    path = shutil.which(name, path=os.pathsep.join((_TOOLS, os.environ.get("PATH", ""), _SYSTEM)))
    if path is None:
        raise NotSupportedError(f"sandboxes need {name}, and it is not installed: see the setting {setting}")
    return os.path.abspath(path)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Make the kernel's complaints errors for the caller."""
    try:
        yield
    except OSError as error:
        raise GuestError(f"{what}: {error.strerror or error}") from error
