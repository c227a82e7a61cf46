"""Starts containerd and dockerd when the host asks for them, and knows at any moment whether they answer."""

from __future__ import annotations

import enum
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, evolve, field, frozen

from arcbox_guest.daemons import Daemon, DaemonSpec, DaemonStatus
from arcbox_guest.errors import GuestError, NotSupportedError
from arcbox_guest.runtime import prerequisites
from arcbox_guest.runtime.containerd_link import ContainerdLink
from arcbox_guest.runtime.containers import ContainerWatch
from arcbox_guest.runtime.docker_api import DockerApi
from arcbox_guest.runtime.probes import Liveness, Probe, ask_containerd, ask_docker
from arcbox_guest.runtime.programs import CONTAINERD, DOCKERD, find_programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_guest.data_volume import DataVolume
    from arcbox_guest.runtime.programs import Programs

log = logging.getLogger(__name__)

_CONTAINERD_TIMEOUT: Final = 30.0
_DOCKERD_TIMEOUT: Final = 90.0
"""Seconds from a daemon's start in which it must answer."""

_DOCKERD_STOPS: Final = 20.0
"""Seconds that dockerd gets for stopping its containers, of which each gets 10 s, all at once."""

_POLL: Final = 0.1
"""Seconds between two looks of one who waits for daemons that are being started again."""

_ADOPTED_WITHIN: Final = 0.01
"""Seconds that one who asks an agent that has just started waits for it to know which daemons it supervises."""

_PATIENCE: Final = 0.015
"""Seconds that one who asks waits for new answers of the daemons; after that the last ones stand."""


_MEANINGS: Final = {
    Liveness.HUNG: "accepts connections, and has stopped answering",
    Liveness.ACCEPTS: "accepts connections, and has not answered yet",
    Liveness.ANSWERS: "answers",
}


class Phase(enum.Enum):
    """What the runtime is doing."""

    NOT_STARTED = "not started"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    HUNG = "hung"
    """It runs, and has stopped answering: to start it again would not help."""


@frozen
class ServiceState:
    """One of the two daemons."""

    name: str
    ready: bool
    """Its socket accepts connections, and what it is asked there it answers, or may yet."""

    failed: bool
    """It ended by itself, or does not answer any more."""

    hung: bool
    """The latter of the two."""

    coming: bool
    """It is being started or adopted, or will be soon."""

    detail: str

    @classmethod
    def of(cls, daemon: Daemon, liveness: Liveness) -> ServiceState:
        """The state of a daemon whose socket shows this."""
        if daemon.has_just_ended or (daemon.wanted and daemon.pid is None):  # before a probe has noticed
            liveness = Liveness.ABSENT
        absent, hung = liveness is Liveness.ABSENT, liveness is Liveness.HUNG
        if absent:
            failed = daemon.status in (DaemonStatus.FAILED, DaemonStatus.READY)  # the latter: until its end is noted
            detail = daemon.detail or ("is not there any more" if failed else f"is {daemon.status.value}")
        else:
            failed = hung
            detail = _MEANINGS[liveness] + ("" if daemon.wanted else "; it was started by others")
        return cls(
            name=daemon.spec.name,
            ready=not absent and not hung,
            failed=failed,
            hung=hung,
            coming=not daemon.known or (daemon.wanted and (absent or daemon.status is not DaemonStatus.READY)),
            detail=detail,
        )


@frozen
class RuntimeState:
    """The runtime at one moment."""

    phase: Phase
    detail: str
    """For people: the reason of a failure, or where the data is."""

    containerd: ServiceState
    dockerd: ServiceState


@frozen(kw_only=True)
class RuntimeConfig:
    """Where the runtime's programs and files are, and what it is told."""

    binary_dirs: Sequence[str]
    """As `find_programs` takes them."""

    containerd_socket: str
    docker_socket: str
    state_dir: Path
    """Pid files, logs and what the daemons keep while the machine runs; in memory."""

    data_base: Path = Path("/var/lib")
    """Has the directories docker and containerd."""

    containerd_args: Sequence[str] = ()
    dockerd_args: Sequence[str] = ()
    """Further arguments."""

    endpoint: str = "vsock:2375"
    """Where the host finds the Docker API."""

    hung_after_probes: int = 15
    """Probes in a row that a daemon does not answer, of 2 s each, after which it is killed; 0: never."""


@define(eq=False)
class ContainerRuntime:
    """The container runtime. `run` does the work."""

    config: RuntimeConfig
    volume: DataVolume
    containerd: Daemon = field(init=False)
    dockerd: Daemon = field(init=False)
    containers: ContainerWatch = field(init=False)
    """A service of its own."""

    _containerd_probe: Probe = field(init=False)
    _docker_probe: Probe = field(init=False)
    _link: ContainerdLink = field(init=False)
    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(2))
    _starting: bool = field(init=False, default=False)
    _wanted: trio.Event = field(init=False, factory=trio.Event)
    _start_ended: trio.Event = field(init=False, factory=trio.Event)
    _failure: str = field(init=False, default="")
    """Why the last start failed; empty when it did not."""

    _volume_detail: str = field(init=False, default="")
    _preparing: trio.Lock = field(init=False, factory=trio.Lock)

    def __attrs_post_init__(self) -> None:
        self._containerd_probe = Probe(self.config.containerd_socket, ask_containerd)
        self._docker_probe = Probe(self.config.docker_socket, ask_docker)
        self.containerd = Daemon(self._containerd_spec())
        self.dockerd = Daemon(self._dockerd_spec())
        docker = DockerApi(self.config.docker_socket)
        self.containers = ContainerWatch(docker)
        self._link = ContainerdLink(self.containerd, self.dockerd, docker)

    async def run(self) -> None:
        """Supervise the daemons and start them when they are wanted, for ever. They go on when this is cancelled."""
        self._starting = self._wanted.is_set()
        with suppress(NotSupportedError):  # for those that an earlier agent started; what is missing now may come
            self.containerd.spec = self._containerd_spec(await self._find(CONTAINERD))
            self.dockerd.spec = self._dockerd_spec(await self._find(DOCKERD))
        async with trio.open_nursery() as nursery:
            for service in (self.containerd, self.dockerd, self._containerd_probe, self._docker_probe, self._link):
                nursery.start_soon(service.run)
            if self.config.hung_after_probes > 0:
                nursery.start_soon(self._kill_hung, self.containerd, self._containerd_probe)
                nursery.start_soon(self._kill_hung, self.dockerd, self._docker_probe)
            while True:
                await self._wanted.wait()
                await self._start()
                self._wanted, self._starting = trio.Event(), False
                self._start_ended.set()
                self._start_ended = trio.Event()

    async def ensure(self, *, start: bool) -> RuntimeState:
        """What the runtime is doing; with `start`, begin to start it if that is nothing. Takes less than 0.05 s."""
        state = await self.state()
        known = self.containerd.known and self.dockerd.known
        if start and not self._starting and (not known or state.phase in (Phase.NOT_STARTED, Phase.FAILED)):
            self._starting = True
            self._wanted.set()
            detail = f"the last start failed: {state.detail}" if state.phase is Phase.FAILED else ""
            return evolve(state, phase=Phase.STARTING, detail=detail)
        return state

    async def state(self) -> RuntimeState:
        """What the runtime is doing. Takes less than 0.05 s."""
        with trio.move_on_after(_ADOPTED_WITHIN):
            await self.containerd.until_known()
            await self.dockerd.until_known()
        containerd_answer, docker_answer = self._containerd_probe.ask(), self._docker_probe.ask()
        with trio.move_on_after(0 if self._starting else _PATIENCE):
            await containerd_answer.wait()
            await docker_answer.wait()
        containerd = ServiceState.of(self.containerd, self._containerd_probe.last)
        dockerd = ServiceState.of(self.dockerd, self._docker_probe.last)
        if dockerd.ready and self.dockerd.wanted and self._link.lost:
            dockerd = evolve(dockerd, coming=True, detail="answers, and has not reached the new containerd yet")
        return RuntimeState(*self._phase(containerd, dockerd), containerd, dockerd)

    async def start(self) -> RuntimeState:
        """Have it started, and wait until it is ready or can't be."""
        state = await self.ensure(start=True)
        while state.phase is Phase.STARTING:
            if self._starting:
                await self._start_ended.wait()
            else:
                await trio.sleep(_POLL)
            state = await self.state()
        return state

    async def start_containerd(self) -> None:
        """Have the prerequisites, the data volume and containerd: all that Kubernetes shares with Docker.

        Raises:
            GuestError: one of them can't be had.
        """
        async with self._preparing:
            await prerequisites.prepare(self._limiter)
            self._volume_detail = (await self.volume.prepare()).detail
            if await self._containerd_probe.answers():
                return  # ours, or somebody else's
            await self.containerd.start(self._containerd_spec(await self._find(CONTAINERD)))

    async def restart_containerd(self) -> None:
        """End containerd and start it again, if it is ours. Containers go on meanwhile.

        Raises:
            GuestError: it can't be had again.
        """
        if self.containerd.wanted:
            await self.containerd.stop()
            await self.start_containerd()

    async def stop(self) -> None:
        """End both daemons, dockerd first: its containers end with it."""
        await self.dockerd.stop()
        await self.containerd.stop()

    async def _kill_hung(self, daemon: Daemon, probe: Probe) -> None:
        """Not by SIGTERM: it would hardly end in an orderly way."""
        while True:
            await probe.next()
            # One that is starting has a deadline of its own; its socket may take connections long before it answers.
            if daemon.status is DaemonStatus.READY and probe.unanswered >= self.config.hung_after_probes:
                daemon.kill(f"did not answer {probe.unanswered} probes in a row")
                probe.unanswered = 0

    async def _start(self) -> None:
        self._failure = ""
        try:
            await self.start_containerd()
            if not await self._docker_probe.answers():  # ours, or somebody else's
                await self.dockerd.start(self._dockerd_spec(await self._find(DOCKERD)))
        except GuestError as error:
            self._failure = str(error)
            log.error("container runtime failed", extra={"reason": str(error)})  # noqa: TRY400  the reason says all
        except Exception as error:
            self._failure = f"internal error: {type(error).__name__}; the agent's log has more"
            log.exception("container runtime failed")
        else:
            log.info("container runtime ready", extra={"data": self._volume_detail})

    def _phase(self, containerd: ServiceState, dockerd: ServiceState) -> tuple[Phase, str]:
        services = (containerd, dockerd)
        trouble = "; ".join(f"{service.name} {service.detail}" for service in services if service.failed)
        if self._starting or any(service.coming for service in services):
            return Phase.STARTING, trouble
        if trouble and all(service.ready or service.hung for service in services):
            return Phase.HUNG, trouble
        if dockerd.ready and not trouble:
            return Phase.READY, self._volume_detail
        if self._failure or trouble:
            return Phase.FAILED, self._failure or trouble
        return Phase.NOT_STARTED, "not started"

    async def _find(self, names: Sequence[str]) -> Programs:
        return await trio.to_thread.run_sync(
            find_programs, names, self.config.binary_dirs, limiter=self._limiter, abandon_on_cancel=True
        )

    def _containerd_spec(self, programs: Programs | None = None) -> DaemonSpec:
        config = self.config
        return DaemonSpec(
            name="containerd",
            argv=(
                programs.path if programs else "containerd",
                f"--address={config.containerd_socket}",
                f"--root={config.data_base / 'containerd'}",
                f"--state={config.state_dir / 'containerd'}",
                *config.containerd_args,
            ),
            probe=self._containerd_probe.answers,
            start_timeout=_CONTAINERD_TIMEOUT,
            state_dir=config.state_dir,
            environment=programs.environment() if programs else None,
        )

    def _dockerd_spec(self, programs: Programs | None = None) -> DaemonSpec:
        config = self.config
        return DaemonSpec(
            name="dockerd",
            argv=(
                programs.path if programs else "dockerd",
                f"--host=unix://{config.docker_socket}",
                f"--containerd={config.containerd_socket}",
                f"--data-root={config.data_base / 'docker'}",
                f"--exec-root={config.state_dir / 'docker'}",
                f"--pidfile={config.state_dir / 'docker.pid'}",
                *config.dockerd_args,
            ),
            probe=self._docker_probe.answers,
            start_timeout=_DOCKERD_TIMEOUT,
            stop_timeout=_DOCKERD_STOPS,
            state_dir=config.state_dir,
            environment=programs.environment() if programs else None,
        )
