"""One sandbox from its creation to its removal, in a task of its own.

Only this task has the driver create, stop and destroy the sandbox, one after the other, so these never meet. A request
changes the state at once, and cuts short what the task is doing.
"""

from __future__ import annotations

import logging
import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, evolve, field

from arcbox_guest.errors import ConflictError, GuestError, NotSupportedError, TimedOutError, UnavailableError
from arcbox_guest.log_fields import log_fields
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.executions import Executions
from arcbox_guest.sandboxes.lifetime import Lifetime
from arcbox_guest.sandboxes.model import Action, ExecSpec, Reason, State
from arcbox_guest.sandboxes.outcome import Outcome
from arcbox_guest.sandboxes.workload import KILLED, NOT_STARTED, End, TrackedProcess, Workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from arcbox_guest.images.store import ImageStore
    from arcbox_guest.network.network import SandboxNetwork
    from arcbox_guest.sandboxes.driver import Driver, Process
    from arcbox_guest.sandboxes.events import EventHub
    from arcbox_guest.sandboxes.model import Forward, IdleAction, Sandbox
    from arcbox_guest.sandboxes.records import Records
    from arcbox_guest.sandboxes.times import Times

log = logging.getLogger(__name__)

PATIENCE: Final = 60.0
"""Seconds that the driver has to create, stop or destroy a sandbox."""

_BETWEEN_RECORDS: Final = 1.0
"""Seconds for which a sandbox that stays usable is not recorded again: many things may run in it for a moment each."""

_IDLE_PATIENCE: Final = 0.5
"""Seconds in which the kernel lets go of the processes of a sandbox that have ended."""

_FIRST_RECORD: Final = 2.0
"""Seconds that a sandbox may take longer to get ready because of its record."""

_LAST_RECORD: Final = 2.0
"""Seconds that the last record may take when the agent ends."""

_CHANGE_RECORD: Final = 2.0
"""Seconds that a change which somebody asked for waits for its record, so that it outlives the agent from then on."""

_RESUMING: Final = 5.0
"""Seconds that the driver has to let a sandbox go on that was just paused and shall not be."""


@define(eq=False, kw_only=True)
class Life:
    """A sandbox, and what happens to it."""

    sandbox: Sandbox
    """As it is now."""

    _driver: Driver
    _events: EventHub
    _records: Records
    _times: Times
    _forget: Callable[[str], object]
    """Called when the sandbox has been removed, with its id."""

    _network: SandboxNetwork | None = None
    """Which takes the sandbox's address back when it has been removed."""

    _images: ImageStore | None = None
    _leftover: bool = field(init=False, default=False)
    """Whether there may be something of it on the machine that is to be cleared away."""

    taken_over: trio.Event = field(init=False, factory=trio.Event)
    """Set when it is known what became of it while no agent ran."""

    _nursery: trio.Nursery | None = field(init=False, default=None)
    """For what goes on beside the task; None before and after."""

    _quiet: trio.Lock = field(init=False, factory=trio.Lock)
    """Held while nothing may be started in it."""

    executions: Executions = field(init=False)
    """What runs in it and does not end with the agent."""

    lifetime: Lifetime = field(init=False)
    """What ends it by itself."""

    _workloads: int = field(init=False, default=0)
    _out_of_memory_kills: int = field(init=False, default=0)
    """Those that are accounted for."""

    _over: trio.Event = field(init=False, factory=trio.Event)
    """Set when nothing more can run in it."""

    _changed: trio.Event = field(init=False, factory=trio.Event)
    """Set when the record on disk is out of date."""

    _working: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    """What is cut short when the sandbox is asked to end."""

    _grace: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    """The time that its processes have to end by themselves."""

    _stopped: Outcome = field(init=False, factory=Outcome)
    _removed: Outcome = field(init=False, factory=Outcome)
    _removal_wanted: trio.Event = field(init=False, factory=trio.Event)
    _removal_reason: Reason | None = field(init=False, default=None)
    """Why what ran in it was killed; None while it was not."""

    @executions.default
    def _executions(self) -> Executions:
        return Executions(
            sandbox_id=self.id,
            driver=self._driver,
            output=self._records.output,
            admit=lambda: self.admit(states.READY_OR_RUNNING),
            until_quiet=self.until_quiet,
            explain=self._out_of_memory,
            start_soon=self._start_soon,
            now=self._times.now,
        )

    @lifetime.default
    def _lifetime(self) -> Lifetime:
        return Lifetime(
            sandbox=self.current,
            now=self._times.now,
            check_idle=self._check_idle,
            remove=lambda reason: self.remove(force=True, reason=reason),
            pause=self.pause,
        )

    @property
    def id(self) -> str:
        return self.sandbox.id

    def current(self) -> Sandbox:
        """What is known of it, with its times as the clock now would have shown them."""
        self.sandbox = self._times.restated(self.sandbox)
        return self.sandbox

    def begin(self) -> None:
        """Tell that there is a new sandbox."""
        self._tell(Action.CREATED)

    def take_over(self) -> None:
        """A former agent made it: find out what there is of it when `run` begins."""
        if self.sandbox.state in states.LIVE and not self.sandbox.facts:
            self._fail(f"the agent was restarted while the sandbox was {self.sandbox.state}")
        if self.sandbox.state is State.FAILED:
            self._leftover = True

    def discard(self) -> None:
        """Have it removed, waiting for nobody; it is on record until that has succeeded."""
        self._changed.set()
        self._removal_wanted.set()

    async def run(self) -> None:
        """Live, until the sandbox has been removed."""
        log_fields.set({"sandbox": self.id})
        try:
            while not await self._lived():
                pass
            await self._records.delete(self.id)
            await self._release_lease()
            self._become(Action.REMOVED, self._removal_attributes())
            self._forget(self.id)
            self._stopped.settle()
            self._removed.settle()
        finally:
            self._over.set()  # what ends from now on is no news of this sandbox: the next agent has it
            ending = UnavailableError(f"sandbox {self.id} is left as it is: the agent is ending")
            self._stopped.settle(ending)
            self._removed.settle(ending)

    async def _release_lease(self) -> None:
        if self._network is not None:
            try:
                await self._network.release(self.id)
            except GuestError as error:
                log.warning("link of a sandbox not removed", extra={"sandbox": self.id, "reason": str(error)})

    async def over(self) -> None:
        """Wait until nothing more can run in it."""
        await self._over.wait()

    async def checkpoint(self) -> tuple[str, ...]:
        """Keep its files; what is to run in it waits meanwhile, some milliseconds. See `Driver.checkpoint`.

        Raises:
            ConflictError: it is not ready, or something that was left behind runs in it.
            GuestError: it failed.
        """
        async with self._quiet:
            states.check_may_run(self.sandbox, states.READY)
            if (await self._driver.statistics(self.id)).processes > 1:
                raise ConflictError(f"sandbox {self.id} has processes that were left behind: end them first")
            return await self._driver.checkpoint(self.id)

    async def until_quiet(self) -> None:
        """Wait while its files are being kept."""
        async with self._quiet:
            pass

    async def pause(self) -> None:
        """Freeze all that was left behind in it, with its init; it is on record when this returns.

        Raises:
            PreconditionError: it is not ready.
            GuestError: it can't be frozen, and goes on.
        """
        async with self._quiet:
            states.check_may(self.sandbox, Action.PAUSED)
            await self._driver.pause(self.id)
            if self.sandbox.state is not State.READY:  # it was asked to end meanwhile
                with trio.move_on_after(_RESUMING, shield=True):
                    await self._driver.resume(self.id)
            states.check_may(self.sandbox, Action.PAUSED)
            self._become(Action.PAUSED)
        await self._record_change()

    async def resume(self) -> None:
        """Let it go on; it is on record when this returns.

        Raises:
            PreconditionError: it is not paused.
            GuestError: it can't go on.
        """
        async with self._quiet:
            states.check_may(self.sandbox, Action.RESUMED)
            await self._driver.resume(self.id)
            states.check_may(self.sandbox, Action.RESUMED)
            self._become(Action.RESUMED)
        await self._record_change()

    async def set_limits(self, *, ttl: float | None, idle_timeout: float | None, on_idle: IdleAction | None) -> None:
        """Change when it ends by itself; what is None stays as it is. It is on record when this returns.

        Args:
            ttl: seconds from now until it is removed by force; 0 is never.
            idle_timeout: seconds for which it may be idle from now on; 0 is for ever.
            on_idle: what happens then.
        """
        sandbox = self.current()
        if ttl is not None:
            sandbox = evolve(sandbox, expires_at=self._times.now() + ttl if ttl else 0.0)
        if idle_timeout is not None:
            sandbox = evolve(sandbox, idle_timeout=idle_timeout)
        self.sandbox = evolve(sandbox, on_idle=sandbox.on_idle if on_idle is None else on_idle)
        self.lifetime.touch()
        self.lifetime.reconsider()
        await self._record_change()

    async def set_forwards(self, forwards: tuple[Forward, ...]) -> None:
        """Keep which ports lead to it; it is on record when this returns."""
        self.sandbox = evolve(self.sandbox, forwards=forwards)
        await self._record_change()

    async def _record_change(self) -> None:
        self._changed.set()
        with trio.move_on_after(_CHANGE_RECORD):
            await self._save()

    async def stop(self, grace: float) -> None:
        """End all that runs in it; what has ended already stays ended.

        Args:
            grace: seconds that its processes have to end by themselves.

        Raises:
            ConflictError: it has failed.
            GuestError: it could not be stopped, and so has failed.
        """
        deadline = trio.current_time() + grace
        match self.sandbox.state:
            case State.STOPPED:
                return
            case State.STOPPING:
                self._grace.deadline = min(self._grace.deadline, deadline)
            case _:
                self._become(Action.STOPPING)
                self._grace.deadline = deadline
                self._working.cancel()
        await self._stopped.wait()

    async def remove(self, *, force: bool, reason: Reason = Reason.REMOVED) -> None:
        """End all that runs in it, and remove what there is of it.

        Args:
            force: whether processes may be running; a stop that is under way is not waited for either.
            reason: why they are killed.

        Raises:
            ConflictError: processes are running, and that without `force`.
            GuestError: it could not be removed.
        """
        states.check_may_remove(self.sandbox, force=force)
        if not force and self.sandbox.state in (State.READY, State.PAUSED):
            await self._check_idle()
        if self.sandbox.state in states.LIVE:
            if force:
                self._removal_reason = reason
            self._become(Action.STOPPING, self._removal_attributes())
            self._working.cancel()
            self._grace.cancel()
        elif force:
            self._grace.cancel()
        self._removal_wanted.set()
        await self._removed.wait()

    def admit(self, needs: frozenset[State]) -> Workload:
        """Count a process as running, which is about to be started.

        Raises:
            PausedError: the sandbox is paused.
            ConflictError: it is in none of the states that it needs.
        """
        states.check_may_run(self.sandbox, needs)
        self._workloads += 1
        if self.sandbox.state is State.READY:
            self._become(Action.RUNNING)
        return Workload(self._workload_ended)

    @asynccontextmanager
    async def process(self, command: ExecSpec, workload: Workload) -> AsyncIterator[Process]:
        """Start a process that was admitted; its tree is killed if the context is left before its end.

        Raises:
            GuestError: what `Driver.process` raises.
        """
        end = End(NOT_STARTED)
        try:
            async with self._driver.process(self.id, command) as process:
                if self._nursery is None or self.sandbox.state not in states.LIVE:
                    raise UnavailableError(f"sandbox {self.id} ended while the process was started in it")
                end = End(KILLED)
                tracked = TrackedProcess(process, workload, command.timeout, self._out_of_memory)
                self._nursery.start_soon(tracked.watch)
                yield tracked
        except GuestError as error:
            end = End(end.exit_code, error=str(error))
            raise
        finally:
            workload.end(end)

    async def _lived(self) -> bool:
        """Live until the sandbox is destroyed; False after an error that nobody foresaw, which is no reason to die."""
        lost = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_record)
                nursery.start_soon(self.lifetime.run)
                self._nursery = nursery
                try:
                    await self._live(nursery)
                finally:
                    self._nursery = None  # before it closes, and turns who starts something there into an error
                self._changed = trio.Event()  # there is nothing left that could be recorded
                nursery.cancel_scope.cancel()
        except* Exception:  # with a Cancelled beside it, perhaps, if the agent ends in the same moment
            log.exception("sandbox lost", extra={"sandbox": self.id})
            self._leftover = lost = True
            self._removal_failed(self._unforeseen("looked after"))
        return not lost

    async def _live(self, nursery: trio.Nursery) -> None:
        if self._leftover:
            self.taken_over.set()
            await self._attempt("cleared away", self._destroy)
        if self.sandbox.state in states.LIVE:
            with self._working:
                await (self._resume(nursery) if self.sandbox.facts else self._work(nursery))
        self.taken_over.set()
        if self.sandbox.state is State.STOPPING:
            await self._end()
        while True:
            await self._removal_wanted.wait()
            error = await self._attempt("removed", self._destroy)
            if error is None:
                return
            self._removal_failed(error)

    async def _work(self, nursery: trio.Nursery) -> None:
        """Create the sandbox, and wait until it fails."""
        error = None
        if self.sandbox.spec.image:
            error = await self._attempt("given its image", self._get_image, patience=math.inf)
        if error is None:
            error = await self._attempt("created", self._create)
        if self.sandbox.state is not State.STARTING:
            return
        if error is not None:
            self._fail(str(error))
            await self._attempt("cleared away", self._destroy)
            return
        self.sandbox = evolve(self.current(), ready_at=self._times.now())
        with trio.move_on_after(_FIRST_RECORD):  # an agent that is killed from now on leaves it to the next one
            await self._records.save(self.sandbox, durable=False)
        if self.sandbox.state is not State.STARTING:
            return
        self.lifetime.touch()
        self._become(Action.READY)
        self._run_initial_command(nursery)
        await self._until_init_ends()

    async def _resume(self, nursery: trio.Nursery) -> None:
        """Go on with a sandbox of a former agent, and wait until it fails."""
        error = await self._attempt("adopted", self._adopt)
        if self.sandbox.state not in states.LIVE:
            return
        if error is not None:
            self._fail(f"the agent was restarted, and then: {error}")
            self.taken_over.set()
            await self._attempt("cleared away", self._destroy)
            return
        self._out_of_memory_kills = self._driver.out_of_memory_kills(self.id)
        if self.sandbox.state is State.STARTING:
            self._become(Action.READY)
        known_as_paused = self.sandbox.state is State.PAUSED
        if known_as_paused:
            self.sandbox = evolve(self.sandbox, state=State.READY)
        with trio.move_on_after(PATIENCE):
            if not await self._resume_executions() and not self.sandbox.last_exited_at:
                self._run_initial_command(nursery)
        if self.sandbox.state is State.RUNNING and not self._workloads:
            error_text = "the agent was restarted, and it was killed with the agent's connections"
            self._workloads += 1
            self._workload_ended(End(KILLED, error=error_text))
        await self._resume_pause(known_as_paused=known_as_paused)
        self.lifetime.touch()
        self.lifetime.reconsider()
        self.taken_over.set()
        await self._until_init_ends()

    async def _resume_pause(self, *, known_as_paused: bool) -> None:
        """Whether it is paused the kernel knows: a former agent may have been killed before that was on record."""
        if not self._driver.is_paused(self.id):
            return
        if self.sandbox.state is not State.READY:
            await self._attempt("resumed", partial(self._driver.resume, self.id))
        elif known_as_paused:
            self.sandbox = evolve(self.sandbox, state=State.PAUSED)
        else:
            self._become(Action.PAUSED)

    async def _adopt(self) -> None:
        if self.sandbox.driver != self._driver.name:
            raise NotSupportedError(f"it was made by the driver {self.sandbox.driver}, which this agent has not got")
        await self._driver.adopt(self.sandbox.spec, self.sandbox.facts)

    async def _resume_executions(self) -> bool:
        """Go on with what runs detached; whether the initial command was ever started."""
        try:
            return await self.executions.resume()
        except GuestError as error:
            log.warning("executions lost", extra={"sandbox": self.id, "reason": str(error)})
            return True

    def _run_initial_command(self, nursery: trio.Nursery) -> None:
        if self.sandbox.spec.cmd:
            command = ExecSpec(argv=self.sandbox.spec.cmd)
            nursery.start_soon(self.executions.run_initial_command, command, self.admit(states.READY_OR_RUNNING))

    async def _until_init_ends(self) -> None:
        reason = await self._init_ended()
        if self.sandbox.state in states.LIVE:
            self._fail(reason)
            await self._attempt("stopped", partial(self._driver.stop, self.id))

    async def _get_image(self) -> None:
        if self._images is None:
            raise NotSupportedError("sandboxes from images can't be had here")
        image = await self._images.get(self.sandbox.spec.image)
        self.sandbox = evolve(self.sandbox, spec=image.fill(self.sandbox.spec))
        self._changed.set()

    async def _create(self) -> None:
        facts = await self._driver.create(self.sandbox.spec)
        self.sandbox = evolve(self.sandbox, driver=self._driver.name, facts=facts)

    async def _end(self) -> None:
        """Stop the sandbox; if it is to be removed, that kills what still runs."""
        was_ready = self.sandbox.ready_at > 0
        if was_ready:
            with self._grace:
                await self._attempt("asked to end", self._ask_to_end, patience=math.inf)
        if self._removal_wanted.is_set():
            return
        error = await self._attempt("stopped", partial(self._driver.stop, self.id) if was_ready else self._destroy)
        if error is not None:
            self._fail(str(error))
        else:
            self._become(Action.STOPPED)
        self._stopped.settle(error)

    async def _ask_to_end(self) -> None:
        await self._driver.terminate(self.id)
        await self._driver.resume(self.id)  # what is paused gets the signal now
        await self._driver.idle(self.id)

    async def _destroy(self) -> None:
        await self._driver.destroy(self.id)
        self._leftover = False

    async def _init_ended(self) -> str:
        try:
            return await self._driver.ended(self.id)
        except GuestError as error:
            return str(error)

    async def _check_idle(self) -> None:
        """Raises ConflictError: processes that were left behind run in it."""
        with trio.move_on_after(_IDLE_PATIENCE):
            await self._attempt("found idle", partial(self._driver.idle, self.id))
            return
        raise ConflictError(
            f"{states.describe(self.sandbox)}, but processes that were left behind run in it: stop it first, or remove"
            " it by force"
        )

    async def _keep_record(self) -> None:
        """Write the record after every change, or after several: nobody waits for the disk."""
        settled = False
        try:
            while True:
                await self._changed.wait()
                if settled:
                    with trio.move_on_after(_BETWEEN_RECORDS):
                        await self._over.wait()
                settled = self.sandbox.state in states.ALIVE
                await self._save()
        finally:
            if self._changed.is_set():  # the agent ends, and the next one shall know how its sandboxes did
                with trio.move_on_after(_LAST_RECORD, shield=True):
                    await self._save()

    async def _save(self) -> None:
        self._changed = trio.Event()
        try:
            await self._records.save(self.sandbox)
        except trio.Cancelled:
            self._changed.set()
            raise

    async def _attempt(
        self, done: str, call: Callable[[], Awaitable[None]], *, patience: float = PATIENCE
    ) -> GuestError | None:
        """Have the driver do something to the sandbox, which is `done` then; returns what went wrong."""
        error: GuestError | None = None
        try:
            with trio.fail_after(patience):
                await call()
        except trio.TooSlowError:
            error = TimedOutError(f"sandbox {self.id} could not be {done} in {patience:.0f} seconds")
        except GuestError as failure:
            error = failure
        except Exception:
            log.exception("driver failed", extra={"driver": self._driver.name})
            error = self._unforeseen(done)
        if error is not None:
            log.warning("sandbox not %s", done, extra={"sandbox": self.id, "reason": str(error)})
        return error

    def _start_soon(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run a function in a task that ends with this one."""
        if self._nursery is None:
            raise UnavailableError(f"sandbox {self.id} is being removed, or the agent is ending")
        self._nursery.start_soon(function, *arguments)

    def _unforeseen(self, done: str) -> GuestError:
        return GuestError(f"sandbox {self.id} could not be {done}: internal error; the agent's log has more")

    def _removal_failed(self, error: GuestError) -> None:
        if self.sandbox.state not in (State.STOPPED, State.FAILED):
            self._fail(str(error))
        self._stopped.settle(error)
        removed, self._removed = self._removed, Outcome()
        self._removal_wanted = trio.Event()
        removed.settle(error)

    def _workload_ended(self, end: End) -> None:
        self._workloads -= 1
        if self._over.is_set() and self.sandbox.state in states.LIVE:
            return
        self.sandbox = evolve(
            self.current(), last_exited_at=self._times.now(), last_exit_code=end.exit_code, last_error=end.error
        )
        self._changed.set()
        if self._workloads == 0 and self.sandbox.state is State.RUNNING:
            attributes = {"exit_code": str(end.exit_code)}
            if end.reason is not None:
                attributes["reason"] = end.reason
            elif end.error:
                attributes["error"] = end.error
            self.lifetime.touch()
            self._become(Action.IDLE, attributes)

    def _out_of_memory(self) -> End | None:
        """How a process ended that was killed, if the memory limit explains it."""
        known, self._out_of_memory_kills = self._out_of_memory_kills, self._driver.out_of_memory_kills(self.id)
        if self._out_of_memory_kills <= known:
            return None
        limit = self.sandbox.spec.limits.memory_mib
        error = f"{Reason.OUT_OF_MEMORY}: the memory limit of the sandbox, {limit} MiB, was reached"
        return End(KILLED, Reason.OUT_OF_MEMORY, error)

    def _removal_attributes(self) -> Mapping[str, str]:
        return {"reason": self._removal_reason} if self._removal_reason else {}

    def _fail(self, reason: str) -> None:
        self.sandbox = evolve(self.sandbox, error=reason)
        self._become(Action.FAILED, {"error": reason})

    def _become(self, action: Action, attributes: Mapping[str, str] | None = None) -> None:
        """Get from one state into the next, and tell."""
        state = states.after(self.sandbox, action)
        if state is not None:
            self.sandbox = evolve(self.sandbox, state=state)
            if state not in states.LIVE:
                self._over.set()
            if self.sandbox.idle_timeout:
                self.lifetime.reconsider()
        self._tell(action, attributes)

    def _tell(self, action: Action, attributes: Mapping[str, str] | None = None) -> None:
        self._changed.set()
        self._events.publish(self.id, action, attributes)
