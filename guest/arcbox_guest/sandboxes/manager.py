"""All sandboxes of this guest: what requests about them are done to."""

from __future__ import annotations

import logging
import re
import uuid
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, evolve, field, frozen

from arcbox_guest.errors import (
    ConflictError,
    GuestError,
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    PreconditionError,
    TimedOutError,
    UnavailableError,
)
from arcbox_guest.images.image import Reference
from arcbox_guest.network.addresses import Lease
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.life import PATIENCE, Life
from arcbox_guest.sandboxes.model import NetworkMode, ResourceLimits, Sandbox, Spec, State
from arcbox_guest.sandboxes.outcome import Outcome
from arcbox_guest.sandboxes.snapshots import Snapshot, Snapshots
from arcbox_guest.sandboxes.times import Times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from arcbox_guest.images.store import ImageStore
    from arcbox_guest.network.network import SandboxNetwork
    from arcbox_guest.sandboxes.driver import Driver, Process
    from arcbox_guest.sandboxes.events import EventHub, Subscription
    from arcbox_guest.sandboxes.executions import Executions
    from arcbox_guest.sandboxes.model import Action, ExecSpec, Forward, IdleAction, Statistics
    from arcbox_guest.sandboxes.ownership import DataDirectory
    from arcbox_guest.sandboxes.records import Records

log = logging.getLogger(__name__)

DEFAULT_GRACE: Final = 30.0
"""Seconds that the processes of a sandbox have to end by themselves, when nobody says how many."""

_SHUTDOWN_GRACE: Final = 5.0
"""The same, when all sandboxes are stopped at once, because the agent ends or the machine is to be powered off."""

_STATISTICS_PATIENCE: Final = 5.0
"""Seconds that the driver has to tell what a sandbox uses."""

_PORT_AGAIN: Final = 0.05
"""Seconds between two looks for a port: the kernel tells nobody."""

_CLOSING_PATIENCE: Final = 5.0
"""Seconds that the driver has to let go of the machine."""

_OPENING_PATIENCE: Final = 10.0
"""Seconds for which requests wait for `run` to have found out what a former agent left."""

_SWEEPING_PATIENCE: Final = PATIENCE
"""The same for a creation, which needs more of it: an emulated processor loads the network and the driver meanwhile."""

_ADOPTING_PATIENCE: Final = 5.0
"""Seconds for which requests wait until what former agents left is adopted; a driver may hang."""

_CHECKING_PATIENCE: Final = 5.0
"""Seconds that the driver has to find out whether a sandbox can be: storage may hang."""

_CLAIMED_AGAIN: Final = 0.5
"""Seconds after which it is tried again to have the data directory, while another agent has it."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@frozen(kw_only=True)
class Defaults:
    """What a sandbox gets that asks for nothing else."""

    rootfs: str = ""
    """Empty where every sandbox has to name its own."""

    vcpus: int = 1
    memory_mib: int = 512

    def fill(self, spec: Spec) -> Spec:
        """The spec with nothing left out.

        Raises:
            InvalidArgumentError: there is no default for what is left out.
        """
        if spec.image and spec.rootfs:
            raise InvalidArgumentError("the request names an image and a rootfs: a sandbox has one of them")
        rootfs = "" if spec.image else spec.rootfs or self.rootfs
        if not (spec.image or rootfs):
            raise InvalidArgumentError(
                "no root file system: the request names none in rootfs, nor does the agent's setting sandbox.rootfs"
            )
        limits = ResourceLimits(
            vcpus=spec.limits.vcpus or self.vcpus, memory_mib=spec.limits.memory_mib or self.memory_mib
        )
        return evolve(spec, id=spec.id or str(uuid.uuid4()), rootfs=rootfs, limits=limits)


@define(eq=False)
class SandboxManager:
    """Makes sandboxes, keeps an eye on them, and ends them.

    An operation that was begun goes on when its caller is cancelled; only processes end with their caller.
    """

    _driver: Driver
    _records: Records
    _events: EventHub
    _defaults: Defaults
    _times: Times = Factory(Times)
    _network: SandboxNetwork | None = field(default=None, kw_only=True)
    """None where sandboxes have loopback only."""

    _images: ImageStore | None = field(default=None, kw_only=True)
    _data: DataDirectory | None = field(default=None, kw_only=True)
    """What no other agent may use meanwhile; None where nobody else could."""
    snapshots: Snapshots = field(factory=Snapshots, kw_only=True)

    _lives: dict[str, Life] = field(init=False, factory=dict)
    """By id, in the order of their creation."""

    _nursery: trio.Nursery | None = field(init=False, default=None)
    """Where they are lived; None while `run` does not run, or has not yet read the records."""

    _context: Context = field(init=False, factory=copy_context)
    """Of the service: a sandbox outlives the request that creates it, and logs nothing for it."""

    _claiming: trio.Lock = field(init=False, factory=trio.Lock)
    _not_ours: UnavailableError | None = field(init=False, default=None)
    """What requests get while another agent has the data directory."""

    _unrecorded: list[tuple[str, ...]] = field(init=False, factory=list)
    """The layers of snapshots that are being written down."""

    _removing: trio.Lock = field(init=False, factory=trio.Lock)
    """Held while layers that nobody uses are removed."""

    _loaded: Outcome = field(init=False, factory=Outcome)
    _swept: Outcome = field(init=False, factory=Outcome)
    """Settled when it is known what a former agent left on the machine."""

    async def run(self) -> None:
        """Be the service behind all the other methods, until cancelled."""
        self._context = copy_context()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._open()
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it closes, and turns who starts something there into an error
        finally:
            self._lives.clear()
            self._refuse(UnavailableError("sandboxes are not available: the agent is ending, or its log says why"))
            with trio.move_on_after(_CLOSING_PATIENCE, shield=True):
                await self._driver.close()
            if self._data is not None:
                self._data.release()

    async def opened(self) -> None:
        """Wait until `get` and `list` know of all sandboxes: some milliseconds from the start of `run`.

        Raises:
            UnavailableError: it takes too long, or another agent has the data directory.
        """
        await self._wait_for(self._loaded, _OPENING_PATIENCE)

    async def create(self, spec: Spec) -> Sandbox:
        """Begin a sandbox, whose state is starting; events tell how it goes on. An empty id asks for a new one.

        Raises:
            InvalidArgumentError: no sandbox can be so, as far as that can be known before it is tried.
            ConflictError: there is one with that id.
            NotSupportedError: it asks for a network, and sandboxes have none here.
            UnavailableError: the agent is not that far yet, or another one has the data directory, or all addresses are
                in use.
            TimedOutError: the storage of what it shall be made of does not answer.
        """
        if spec.id and not _ID.fullmatch(spec.id):
            raise InvalidArgumentError(
                f"{spec.id[:80]!r} is no sandbox id: 1 to 64 letters, digits, '_', '.' and '-', first a letter or digit"
            )
        spec = self._defaults.fill(spec)
        await self._wait_for(self._swept, _SWEEPING_PATIENCE)
        self._check_new(spec.id)
        if spec.image:
            self._check_image(spec.image)
        await self._check(spec)
        await self._claim()
        self._check_new(spec.id)  # others may have been created meanwhile
        spec = self._with_lease(spec)
        now = self._times.now()
        expires_at = now + spec.ttl if spec.ttl else 0.0
        life = self._life(
            self._times.restated(Sandbox(spec=spec, state=State.STARTING, created_at=now, expires_at=expires_at))
        )
        self._start(life)
        life.begin()
        return life.sandbox

    def get(self, sandbox_id: str) -> Sandbox:
        """What is known of a sandbox.

        Raises:
            NotFoundError: there is none with that id.
            UnavailableError: the agent is not that far yet.
        """
        self._check_loaded()
        return self._find(sandbox_id).current()

    def list(self, state: State | None = None, labels: Mapping[str, str] | None = None) -> Sequence[Sandbox]:
        """The sandboxes that are in a state, or in any, and that have all of some labels; the oldest first.

        Raises:
            UnavailableError: the agent is not that far yet.
        """
        self._check_loaded()
        wanted = (labels or {}).items()
        return [
            life.current()
            for life in self._lives.values()
            if state in (None, life.sandbox.state) and wanted <= life.sandbox.spec.labels.items()
        ]

    async def stop(self, sandbox_id: str, grace: float = DEFAULT_GRACE) -> None:
        """End all that runs in a sandbox: ask it to, and kill what is left after `grace` seconds.

        One that is being created is not created any further. One that has stopped already stays so.

        Raises:
            NotFoundError: there is none with that id.
            ConflictError: it has failed.
            GuestError: it could not be stopped.
        """
        await self.opened()
        await self._find(sandbox_id).stop(grace)

    async def remove(self, sandbox_id: str, *, force: bool) -> None:
        """Remove a sandbox and all that belongs to it.

        With `force` even while something runs in it; one that is not there is removed already.

        Raises:
            NotFoundError: there is none with that id, and that without `force`.
            ConflictError: something runs in it.
            GuestError: it could not be removed. It can be tried again.
        """
        await self.opened()
        if not force or sandbox_id in self._lives:
            await self._find(sandbox_id).remove(force=force)

    async def pause(self, sandbox_id: str) -> None:
        """Freeze a sandbox that is ready: what was left behind in it, and its init. It keeps its memory.

        Raises:
            NotFoundError: there is none with that id.
            PreconditionError: it is not ready.
            GuestError: it can't be frozen, and goes on.
        """
        await (await self._use(sandbox_id)).pause()

    async def resume(self, sandbox_id: str) -> Sandbox:
        """Let a paused sandbox go on.

        Raises:
            NotFoundError: there is none with that id.
            PreconditionError: it is not paused.
            GuestError: it can't go on.
        """
        life = await self._use(sandbox_id)
        await life.resume()
        return life.sandbox

    async def set_limits(
        self,
        sandbox_id: str,
        *,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        on_idle: IdleAction | None = None,
    ) -> None:
        """Change when a sandbox ends by itself: see `Life.set_limits`.

        Raises:
            NotFoundError: there is none with that id.
        """
        life = await self._use(sandbox_id)
        await life.set_limits(ttl=ttl, idle_timeout=idle_timeout, on_idle=on_idle)

    async def set_forwards(self, sandbox_id: str, forwards: tuple[Forward, ...]) -> None:
        """Keep for the next agent which ports lead to a sandbox.

        Raises:
            NotFoundError: there is none with that id.
        """
        await self._find(sandbox_id).set_forwards(forwards)

    async def reach(self, sandbox_id: str, what: str) -> None:
        """Count a sandbox as used, if it has files and a network.

        Raises:
            NotFoundError: there is none with that id.
            PreconditionError: it has not: `what` can't be reached.
        """
        sandbox = (await self._use(sandbox_id)).sandbox
        if sandbox.state not in states.ALIVE:
            raise PreconditionError(f"{states.describe(sandbox)}: {what} can't be reached")

    async def stop_all(self, grace: float = _SHUTDOWN_GRACE) -> None:
        """Stop all sandboxes that are not stopped yet, and log what can't be.

        Called again meanwhile, with a shorter `grace`, it takes no longer than that.
        """
        with suppress(UnavailableError), trio.move_on_after(_ADOPTING_PATIENCE):
            await self.opened()
        async with trio.open_nursery() as nursery:
            for life in self._lives.values():
                if life.sandbox.state is not State.FAILED:
                    nursery.start_soon(_stop_quietly, life, grace)

    @asynccontextmanager
    async def process(
        self, sandbox_id: str, command: ExecSpec, *, needs: frozenset[State] = states.READY_OR_RUNNING
    ) -> AsyncIterator[Process]:
        """Run a process in a sandbox; its whole tree is killed if the context is left before its end.

        Args:
            sandbox_id: the sandbox.
            command: what to run, and for how long at most.
            needs: the states in which the sandbox may be: `states.READY` or `states.READY_OR_RUNNING`.

        Raises:
            NotFoundError: there is no such sandbox.
            PausedError: it is paused.
            ConflictError: it is in none of those states.
            GuestError: whatever the driver says.
        """
        life = await self._use(sandbox_id)
        await life.until_quiet()
        async with life.process(command, life.admit(needs)) as process:
            yield process

    def root(self, sandbox_id: str) -> AbstractContextManager[int]:
        """The root directory of a sandbox as its processes see it: `Driver.root`, in any thread."""
        return self._driver.root(sandbox_id)

    def network_namespace(self, sandbox_id: str) -> AbstractContextManager[int]:
        """The network namespace of a sandbox: `Driver.network_namespace`, in any thread."""
        return self._driver.network_namespace(sandbox_id)

    async def over(self, sandbox_id: str) -> None:
        """Wait until a sandbox has ended, or is about to: nothing more can run in it.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        await self._find(sandbox_id).over()

    async def checkpoint(self, sandbox_id: str, name: str = "", labels: Mapping[str, str] | None = None) -> Snapshot:
        """Make a snapshot of the files of a sandbox, which stays usable.

        Raises:
            NotFoundError: there is no such sandbox.
            ConflictError: it is not ready.
            GuestError: it failed.
        """
        life = await self._use(sandbox_id)
        layers = await life.checkpoint()
        spec = evolve(life.sandbox.spec, image="", cmd=(), lease="", ttl=0.0, layers=layers)
        snapshot = Snapshot(
            id=str(uuid.uuid4()),
            sandbox_id=sandbox_id,
            name=name,
            labels=labels or {},
            created_at=self._times.now(),
            spec=spec,
        )
        self._unrecorded.append(layers)  # the sandbox may be removed meanwhile
        try:
            await self.snapshots.add(snapshot)
        finally:
            self._unrecorded.remove(layers)
        self._soon(self._flatten, snapshot)
        return snapshot

    async def restore(
        self, snapshot_id: str, sandbox_id: str = "", labels: Mapping[str, str] | None = None, ttl: float = 0.0
    ) -> Sandbox:
        """Make a sandbox from a snapshot, and wait until it is ready; one that fails is removed.

        It has the snapshot's files, limits, mounts and environment, and an address of its own if its origin had one.
        Its origin's command does not run again.

        Raises:
            NotFoundError: there is no such snapshot.
            GuestError: what `create` raises, or why it failed.
        """
        await self.opened()
        snapshot = self.snapshots.get(snapshot_id)
        labels = {**snapshot.spec.labels, **(labels or {})}
        sandbox = await self.create(evolve(snapshot.spec, id=sandbox_id, labels=labels, ttl=ttl))
        with self.subscribe(sandbox.id) as events:
            while sandbox.state is State.STARTING:
                await anext(events)
                sandbox = self.get(sandbox.id)
        if sandbox.state is State.FAILED:
            await self.remove(sandbox.id, force=True)
            raise GuestError(f"snapshot {snapshot_id} can't be restored: {sandbox.error}")
        return sandbox

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot. Sandboxes that were made from it go on; its files are removed in the background.

        Raises:
            NotFoundError: there is no such snapshot.
            GuestError: it failed.
        """
        await self.opened()
        await self.snapshots.delete(snapshot_id)
        self._soon(self._remove_unused_layers)

    async def executions(self, sandbox_id: str) -> Executions:
        """What runs detached in a sandbox, or did.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        return (await self._use(sandbox_id)).executions

    async def wait_for_port(self, sandbox_id: str, port: int, timeout: float) -> None:  # noqa: ASYNC109  the request's
        """Wait until something in a sandbox listens on a TCP port.

        Raises:
            NotFoundError: there is no such sandbox.
            TimedOutError: nothing does, after so many seconds.
            UnavailableError: the sandbox does not run.
        """
        await self._use(sandbox_id)
        deadline = trio.current_time() + timeout
        while port not in await self._driver.listening(sandbox_id):
            if trio.current_time() >= deadline:
                raise TimedOutError(
                    f"nothing listens on port {port} of sandbox {sandbox_id} after {timeout:.0f} seconds"
                )
            await trio.sleep(_PORT_AGAIN)

    def subscribe(self, sandbox_id: str = "", action: Action | None = None) -> Subscription:
        """The events from now on, as a context to iterate over: of one sandbox, or all; one action, or all."""
        return self._events.subscribe(sandbox_id, action)

    async def statistics(self, sandbox_id: str) -> Statistics:
        """What a sandbox uses now.

        Raises:
            NotFoundError: there is no such sandbox.
            ConflictError: it is not ready, or not any more.
            GuestError: whatever the driver says.
        """
        await self.opened()
        sandbox = self._find(sandbox_id).sandbox
        if sandbox.state not in states.ALIVE:
            raise ConflictError(f"{states.describe(sandbox)}: it uses nothing that could be measured")
        with trio.move_on_after(_STATISTICS_PATIENCE):
            return await self._driver.statistics(sandbox_id)
        raise TimedOutError(
            f"what sandbox {sandbox_id} uses could not be found out in {_STATISTICS_PATIENCE:.0f} seconds"
        )

    async def _use(self, sandbox_id: str) -> Life:
        """A sandbox, which is not idle now: somebody wants something of it."""
        await self.opened()
        life = self._find(sandbox_id)
        life.lifetime.touch()
        return life

    def _find(self, sandbox_id: str) -> Life:
        life = self._lives.get(sandbox_id)
        if life is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id[:80]!r}")
        return life

    def _life(self, sandbox: Sandbox) -> Life:
        return Life(
            sandbox=sandbox,
            driver=self._driver,
            events=self._events,
            records=self._records,
            times=self._times,
            forget=self._lives.pop,
            network=self._network,
            images=self._images,
        )

    async def images_in_use(self) -> frozenset[str]:
        """The digests of the images that sandboxes and snapshots have.

        Raises:
            UnavailableError: the agent is not that far yet.
        """
        await self.opened()
        used = {life.sandbox.spec.image_digest for life in self._lives.values()} - {""}
        return self.snapshots.images() | used

    def _check_image(self, reference: str) -> None:
        if self._images is None:
            raise NotSupportedError("sandboxes from images can't be had here: use rootfs")
        Reference.parse(reference)

    def _with_lease(self, spec: Spec) -> Spec:
        if spec.network is NetworkMode.NONE:
            return spec
        if self._network is not None:
            return evolve(spec, network=NetworkMode.TAP, lease=str(self._network.lease(spec.id)))
        if spec.network is NetworkMode.TAP:
            raise NotSupportedError("sandboxes have no network here: the setting network.enabled is false")
        return evolve(spec, network=NetworkMode.NONE)

    def _start(self, life: Life) -> None:
        if self._nursery is None:
            raise UnavailableError("the agent is ending: no sandbox can be created any more")
        self._lives[life.id] = life
        self._context.run(self._nursery.start_soon, life.run)

    def _check_new(self, sandbox_id: str) -> None:
        if sandbox_id in self._lives:
            raise ConflictError(f"sandbox {sandbox_id} exists already: remove it first, or choose another id")

    async def _check(self, spec: Spec) -> None:
        await self._driver.prepare()  # which takes an emulated processor more than that patience
        with trio.move_on_after(_CHECKING_PATIENCE):
            await self._driver.check(spec)
            return
        raise TimedOutError(
            f"what sandbox {spec.id} shall be made of could not be looked at in {_CHECKING_PATIENCE:.0f} seconds"
        )

    async def _claim(self) -> None:
        """Make the data directory this agent's, if it is not yet: it is made for the first sandbox.

        Raises:
            UnavailableError: another agent was faster.
            GuestError: it can't be used.
        """
        if self._data is None:
            return
        async with self._claiming:
            if self._data.claimed:
                return
            try:
                await self._data.claim(make=True)
            except OSError as error:
                raise GuestError(f"the data directory {self._data.path} can't be used: {error.strerror}") from error
            await self._find_what_is_left()  # by an agent that made it meanwhile, and has ended

    async def _open(self) -> None:
        await self._claim_patiently()
        await self._find_what_is_left()

    async def _claim_patiently(self) -> None:
        """Wait until no other agent has the data directory. A former one may be about to end."""
        while self._data is not None:
            try:
                await self._data.claim(make=False)
            except UnavailableError as error:
                if self._not_ours is None:
                    log.error("sandboxes are not available", extra={"reason": str(error)})  # noqa: TRY400  the reason says all
                self._not_ours = error
                self._refuse(error)
                await trio.sleep(_CLAIMED_AGAIN)
            else:
                break
        self._not_ours = None

    async def _find_what_is_left(self) -> None:
        begun = trio.current_time()
        await self.snapshots.load()
        for sandbox in await self._records.load():
            self._take_over(sandbox)
        with trio.move_on_after(_ADOPTING_PATIENCE):
            await self._taken_over()
        self._loaded.settle()
        if self._lives:
            live = sum(life.sandbox.state in states.LIVE for life in self._lives.values())
            seconds = round(trio.current_time() - begun, 3)
            log.info("sandboxes taken over", extra={"known": len(self._lives), "live": live, "seconds": seconds})
        await self._sweep()
        await self._sweep_network()
        await self._remove_unused_layers()
        self._swept.settle()
        for snapshot in self.snapshots.list():
            self._soon(self._flatten, snapshot)

    async def _wait_for(self, opened: Outcome, patience: float) -> None:
        if opened.settled:
            return
        self._check_ours()
        with trio.move_on_after(patience):
            await opened.wait()
            return
        raise UnavailableError("sandboxes are not available: the agent is not ready for them yet, or its log says why")

    def _check_ours(self) -> None:
        if self._not_ours is not None:
            raise UnavailableError(str(self._not_ours))

    def _refuse(self, error: UnavailableError) -> None:
        """Tell whoever waits for `run` to get further than it did; others wait for what comes next."""
        for opened in (self._loaded, self._swept):
            opened.settle(error)
        self._loaded, self._swept = Outcome(), Outcome()

    def _take_over(self, sandbox: Sandbox) -> None:
        """Go on with a record: all at the same time."""
        self._claim_lease(sandbox)
        life = self._life(sandbox)
        life.take_over()
        self._start(life)

    async def _taken_over(self) -> None:
        """Wait until it is known what became of all sandboxes of former agents."""
        await trio.lowlevel.checkpoint()
        for life in list(self._lives.values()):
            await life.taken_over.wait()

    async def _sweep(self) -> None:
        """Remove what there is on the machine of sandboxes without a record."""
        known = set(self._lives)
        for sandbox_id in await self._existing():
            if sandbox_id not in known:
                error = "a former agent left it without a record"
                sandbox = Sandbox(
                    spec=Spec(id=sandbox_id), state=State.FAILED, created_at=self._times.now(), error=error
                )
                life = self._life(sandbox)
                self._start(life)
                life.discard()

    def _claim_lease(self, sandbox: Sandbox) -> None:
        if self._network is None or not sandbox.spec.lease:
            return
        try:
            self._network.claim(sandbox.id, Lease.parse(sandbox.spec.lease))
        except (ValueError, GuestError) as error:
            log.warning("address not kept", extra={"sandbox": sandbox.id, "reason": str(error)})

    async def _remove_unused_layers(self) -> None:
        async with self._removing:  # two at a time would each give up where the other was faster
            try:
                await self._driver.remove_unused(self._used_layers)
            except GuestError as error:
                log.warning("layers that nobody uses not removed", extra={"reason": str(error)})
            except Exception:
                log.exception("layers that nobody uses not removed")

    def _used_layers(self) -> Collection[str]:
        of_sandboxes = (life.sandbox.spec.layers for life in self._lives.values())
        return self.snapshots.layers().union(*of_sandboxes, *self._unrecorded)

    def _soon(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Do in the background what the next agent does if this one ends."""
        if self._nursery is not None:
            self._context.run(self._nursery.start_soon, function, *arguments)

    async def _flatten(self, snapshot: Snapshot) -> None:
        """Have a snapshot with many layers have few. It is there with those or with these, whenever the agent ends."""
        try:
            layers = await self._driver.flatten(snapshot.spec.layers)
            if layers == snapshot.spec.layers:
                return
            await self.snapshots.replace_layers(snapshot.id, layers)
        except GuestError as error:
            log.warning("layers of a snapshot not merged", extra={"snapshot": snapshot.id, "reason": str(error)})
        except Exception:
            log.exception("layers of a snapshot not merged", extra={"snapshot": snapshot.id})
        await self._remove_unused_layers()  # the old ones; or the new one, when the snapshot was deleted meanwhile

    async def _sweep_network(self) -> None:
        if self._network is not None:
            try:
                await self._network.sweep()
            except GuestError as error:
                log.warning("network of sandboxes not swept", extra={"reason": str(error)})

    async def _existing(self) -> Sequence[str]:
        try:
            with trio.fail_after(PATIENCE):
                return await self._driver.existing()
        except GuestError as error:
            log.info("no sandboxes here", extra={"reason": str(error)})
        except Exception:
            log.exception("what a former agent left can't be found")
        return ()

    def _check_loaded(self) -> None:
        self._check_ours()
        if not self._loaded.settled:
            raise UnavailableError("the agent is still reading its records: try again in a moment")


async def _stop_quietly(life: Life, grace: float) -> None:
    try:
        await life.stop(grace)
    except GuestError as error:
        log.warning("sandbox not stopped", extra={"sandbox": life.id, "reason": str(error)})
