"""Starts, stops and deletes k3s when the host asks for it, one operation at a time."""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.daemons import Daemon, DaemonSpec, DaemonStatus
from arcbox_guest.errors import GuestError, NotFoundError, NotSupportedError, UnavailableError
from arcbox_guest.kubernetes.cleanup import Cleanup, kill_session
from arcbox_guest.runtime.programs import find_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from arcbox_guest.runtime.programs import Programs
    from arcbox_guest.runtime.runtime import ContainerRuntime, ServiceState

log = logging.getLogger(__name__)

API_PORT: Final = 6443
CONTEXT: Final = "arcbox"
"""The name of the kubeconfig's context on the host."""

_API_WITHIN: Final = 30.0
"""Seconds for which a start waits for the API. k3s goes on after that: its first start on a slow disk takes minutes."""

_START_TIMEOUT: Final = 600.0
"""Seconds from the start of k3s in which its API must accept connections; it is ended otherwise."""

_STOP_TIMEOUT: Final = 10.0
"""Seconds between SIGTERM and SIGKILL."""

_CONNECT_TIMEOUT: Final = 0.2
"""Seconds for one look at the API, on loopback."""

_KNOWN_WITHIN: Final = 5.0
"""Seconds for which an operation waits for `run` to have looked for a k3s that runs already."""

_STATUS_WAITS: Final = 0.1
"""Seconds for which a status waits for the same, in an agent that has just started."""

_K3S: Final = ("k3s",)
_KUBECONFIG_LIMIT: Final = 1024 * 1024


@frozen(kw_only=True)
class KubernetesConfig:
    """Where k3s is, and what it is told."""

    args: Sequence[str] = ()
    """Further arguments of `k3s server`."""

    api_port: int = API_PORT
    """On 127.0.0.1."""

    endpoint: str = "https://127.0.0.1:16443"
    """Where the host finds the API."""


@frozen
class KubernetesState:
    """What Kubernetes is doing."""

    running: bool
    api_ready: bool
    failed: bool
    """It ended by itself."""

    detail: str
    containerd: ServiceState


@define(eq=False)
class Kubernetes:
    """k3s. `run` supervises it."""

    config: KubernetesConfig
    _runtime: ContainerRuntime
    daemon: Daemon = field(init=False)
    _operating: trio.Lock = field(init=False, factory=trio.Lock)
    """Held by a start, stop or deletion."""

    _doing: str = field(init=False, default="")
    """What is being done, for people."""

    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(2))

    def __attrs_post_init__(self) -> None:
        self.daemon = Daemon(self._spec())

    async def run(self) -> None:
        """Supervise k3s, for ever, one that a former agent started as well. It goes on when this is cancelled."""
        with suppress(NotSupportedError):  # for one that runs; what is missing now may come
            self.daemon.spec = self._spec(await self._find())
        await self.daemon.run()

    async def start(self) -> KubernetesState:
        """Have k3s running, and wait up to 30 s for its API."""
        async with self._operation():
            if self.daemon.wanted:
                return await self._state("k3s already running")
            self._doing = "starting"
            try:
                programs = await self._find()
                await self._runtime.start_containerd()
                with trio.move_on_after(_API_WITHIN):
                    await self.daemon.start(self._spec(programs))
                    return await self._state("k3s started")
                return await self._state(f"k3s runs, and its API does not answer after {_API_WITHIN:.0f} s: it goes on")
            except GuestError as error:
                log.error("k3s not started", extra={"reason": str(error)})  # noqa: TRY400  the reason says all
                return await self._state(str(error))
            finally:
                self._doing = ""

    async def stop(self) -> str:
        """End k3s, and return what was done. Pods go on under their shims, until it is started again or deleted.

        Raises:
            GuestError: it can't be ended.
        """
        async with self._operation():
            return await self._stop()

    async def delete(self) -> str:
        """End k3s, and remove all that it has left on this machine but its programs; returns what was done.

        Raises:
            GuestError: something is left; the text says what. It can be tried again.
        """
        async with self._operation():
            await self._stop()
            self._doing = "deleting"
            try:
                await Cleanup(self._runtime, self._limiter).run()
            finally:
                self._doing = ""
            return "k3s and its data deleted"

    async def state(self) -> KubernetesState:
        """What Kubernetes is doing. Takes less than 0.35 s, whatever is being done."""
        with trio.move_on_after(_STATUS_WAITS):
            await self.daemon.until_known()
        return await self._state("")

    async def kubeconfig(self) -> str:
        """The kubeconfig that k3s has written, as it is.

        Raises:
            NotFoundError: there is none.
            GuestError: it can't be read.
        """
        path = self._data_dir / "k3s.yaml"
        try:
            data = await trio.to_thread.run_sync(_read_start, path, limiter=self._limiter, abandon_on_cancel=True)
        except FileNotFoundError:
            raise NotFoundError("there is no kubeconfig: Kubernetes was not started yet") from None
        except OSError as error:
            raise GuestError(f"{path} can't be read: {error.strerror}") from error
        return data.decode("utf-8", "replace")

    @asynccontextmanager
    async def _operation(self) -> AsyncIterator[None]:
        with trio.move_on_after(_KNOWN_WITHIN) as waiting:
            await self.daemon.until_known()
        if waiting.cancelled_caught:
            raise UnavailableError("the agent does not know yet whether Kubernetes runs: try again in a moment")
        async with self._operating:
            yield

    async def _stop(self) -> str:
        if not self.daemon.wanted and self.daemon.status is not DaemonStatus.STOPPING:
            return "k3s is not running"
        self._doing, session = "stopping", self.daemon.pid
        try:
            await self.daemon.stop()
            if session is not None:
                kill = partial(kill_session, session)
                await trio.to_thread.run_sync(kill, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            self._doing = ""
        return "k3s stopped"

    async def _state(self, detail: str) -> KubernetesState:
        runtime = await self._runtime.state()
        running = self.daemon.pid is not None
        why = self.daemon.detail and f"k3s {self.daemon.detail}"
        api_ready = running and await self._api_answers()
        return KubernetesState(
            running=running,
            api_ready=api_ready,
            failed=self.daemon.status is DaemonStatus.FAILED,
            detail=detail or self._doing or why or ("running" if running else "not running"),
            containerd=runtime.containerd,
        )

    async def _api_answers(self) -> bool:
        """Whether the API accepts connections. Its certificate is not looked at: that is its clients' matter."""
        with trio.move_on_after(_CONNECT_TIMEOUT), suppress(OSError), trio.socket.socket() as connected:
            await connected.connect(("127.0.0.1", self.config.api_port))
            return True
        return False

    async def _find(self) -> Programs:
        return await trio.to_thread.run_sync(
            find_programs, _K3S, self._runtime.config.binary_dirs, limiter=self._limiter, abandon_on_cancel=True
        )

    def _spec(self, programs: Programs | None = None) -> DaemonSpec:
        runtime, config = self._runtime.config, self.config
        port = () if config.api_port == API_PORT else (f"--https-listen-port={config.api_port}",)
        return DaemonSpec(
            name="k3s",
            argv=(
                programs.path if programs else "k3s",
                "server",
                f"--container-runtime-endpoint={runtime.containerd_socket}",
                f"--data-dir={self._data_dir}",
                f"--write-kubeconfig={self._data_dir / 'k3s.yaml'}",
                "--write-kubeconfig-mode=0600",
                "--disable=traefik",
                "--disable=servicelb",
                *port,
                *config.args,
            ),
            probe=self._api_answers,
            start_timeout=_START_TIMEOUT,
            stop_timeout=_STOP_TIMEOUT,
            state_dir=runtime.state_dir,
            environment=programs.environment() if programs else None,
        )

    @property
    def _data_dir(self) -> Path:
        return self._runtime.config.data_base / "rancher" / "k3s"


def _read_start(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold it up
    try:
        return os.read(descriptor, _KUBECONFIG_LIMIT)
    finally:
        os.close(descriptor)
