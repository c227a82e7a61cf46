"""Sandboxes: how long they take to make, to run something in, and to remove, and how fast output comes out of them.

The floors are what crun does without us, called as the agent calls it: where it sees no cgroup2 (crun 1.8 refuses to
work in hybrid otherwise), on an overlay of the same root file system. Docker, where it is installed, is what people
know.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field

from arcbox_guest import linux
from arcbox_guest.sandboxes.oci import hierarchies
from arcbox_guest.sandboxes.oci.namespace import MountNamespace
from bench import docker
from bench.figures import Samples, Target, compare
from bench.memory import resident
from bench.processes import ServerFailedError
from bench.rounds import interleave
from bench.sandbox_host import SandboxHost, sandbox_agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.docker import Container
    from bench.figures import Figure
    from bench.processes import Server
    from bench.stage import Stage

T = TypeVar("T")

_NEEDED = ("crun", "catatonit", "busybox")
_BY_HAND = "crun by hand"
_DOCKER = "docker exec"
_SPLICE = "splice"
_STREAMED = 256 << 20
_FLAT = 2 << 30
_MANY = 200


def measure(stage: Stage) -> list[Figure]:
    """What sandboxes cost. Nothing where there can't be any."""
    if why := why_not():
        print(f"  left out: {why}", file=sys.stderr)
        return []
    agent, host, events = sandbox_agent(stage)
    rootfs, data_dir = stage.directory / "rootfs", stage.directory / "data"
    crun = CrunByHand(data_dir, stage.enter(MountNamespace(str(_unified()))))
    host.create(events, "box", memory_mib=256)
    crun.prepare(rootfs)
    container = idle_container(stage, rootfs)
    return [
        _creating(stage, host, events, crun),
        *_running(stage, host, crun, container),
        *_streaming(stage, host, rootfs, container),
        _flatness(stage, host, agent),
        *_many(stage, host, events, agent),
    ]


def why_not() -> str:
    """Why there can't be sandboxes; empty if there can."""
    if os.geteuid() != 0:
        return "sandboxes take root"
    missing = [name for name in _NEEDED if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def idle_container(stage: Stage, rootfs: Path) -> Container | None:
    """Docker's, where there is one to be had."""
    why = docker.why_not()
    try:
        if not why:
            return stage.enter(docker.idle_container(stage.directory, rootfs))
    except (OSError, ServerFailedError, subprocess.SubprocessError) as error:
        why = str(error)
    print(f"  docker exec is left out: {why}", file=sys.stderr)
    return None


def _unified() -> Path | str:
    found = hierarchies.find()
    return found.unified if found.hybrid else ""


def _creating(stage: Stage, host: SandboxHost, events: SandboxHost, crun: CrunByHand) -> Figure:
    numbers = count()

    def create() -> float:
        sandbox_id = f"made-{next(numbers)}"
        started = time.perf_counter()
        host.create(events, sandbox_id)
        elapsed = time.perf_counter() - started
        host.remove(sandbox_id)
        return elapsed

    samples = interleave({"agent": create, _BY_HAND: crun.create}, stage.rounds)
    agent, floor = (samples[name].scaled(1e3) for name in ("agent", _BY_HAND))
    return compare("sandbox, create to ready", "ms", agent, floor, Target("value", "<", 150))


def _running(stage: Stage, host: SandboxHost, crun: CrunByHand, container: Container | None) -> list[Figure]:
    contenders = {
        "agent": stage.seconds_each(lambda times: repeat(times, lambda: host.run("box", "/bin/true"))),
        _BY_HAND: stage.seconds_each(lambda times: repeat(times, lambda: crun.execute("box", "/bin/true"))),
    }
    if container is not None:
        contenders[_DOCKER] = stage.seconds_each(lambda times: repeat(times, lambda: container.execute("/bin/true")))
    samples = {name: taken.scaled(1e3) for name, taken in interleave(contenders, stage.rounds).items()}
    targets = {_BY_HAND: Target("ratio", "≤", 1.3)}
    return [
        compare("sandbox, run true", "ms", samples["agent"], samples[floor], targets.get(floor))
        for floor in (_BY_HAND, _DOCKER)
        if floor in samples
    ]


def _streaming(stage: Stage, host: SandboxHost, rootfs: Path, container: Container | None) -> list[Figure]:
    size = _STREAMED if stage.rounds > 3 else _STREAMED >> 3
    command = ("dd", "if=/dev/zero", "bs=256k", f"count={size >> 18}", "status=none")
    busybox = str(rootfs / "bin" / "busybox")
    peer = stage.connect(stage.peer("splice", busybox, *command))
    buffer = bytearray(1 << 20)

    def spliced() -> float:
        started = time.perf_counter()
        peer.send(b"x")
        left = size
        while left > 0:
            left -= peer.recv_into(buffer)
        return size / (time.perf_counter() - started)

    def streamed(stream: Callable[..., int]) -> float:
        started = time.perf_counter()
        received = stream(*command)
        elapsed = time.perf_counter() - started
        assert received >= size
        return size / elapsed

    contenders: dict[str, Callable[[], float]] = {
        "agent": partial(streamed, partial(host.stream, "box")),
        _SPLICE: spliced,
    }
    if container is not None:
        contenders[_DOCKER] = partial(streamed, container.stream)
    samples = {name: taken.scaled(1e-6) for name, taken in interleave(contenders, stage.rounds).items()}
    targets = {_SPLICE: Target("ratio", "≥", 0.5)}
    return [
        compare("sandbox, stdout", "MB/s", samples["agent"], samples[floor], targets.get(floor))
        for floor in (_SPLICE, _DOCKER)
        if floor in samples
    ]


def _flatness(stage: Stage, host: SandboxHost, agent: Server) -> Figure:
    """MiB that the agent grows by while it streams 2 GiB, which it has done with a little before."""
    size = _FLAT if stage.rounds > 3 else _FLAT >> 4
    before = resident(agent.pid)
    host.stream("box", "dd", "if=/dev/zero", "bs=256k", f"count={size >> 18}", "status=none")
    grown = Samples("agent", [resident(agent.pid) - before])
    whole = Samples("idle before", [before])
    return compare(f"sandbox, {size >> 20:,} MiB of stdout add", "MiB", grown, whole, Target("value", "<", 8))


def _many(stage: Stage, host: SandboxHost, events: SandboxHost, agent: Server) -> Iterator[Figure]:
    number = _MANY if stage.rounds > 3 else 10
    before = resident(agent.pid)
    ids = [f"many-{number}" for number in range(number)]
    created = _timed(lambda: _create_all(host, events, ids))
    grown = (resident(agent.pid) - before) * 1024
    removed = _timed(lambda: _remove_all(host, ids))
    one = Samples("all of them", [created * 1e3])
    yield compare(f"{number} sandboxes at once, each", "ms", Samples("agent", [created * 1e3 / number]), one)
    yield compare(
        f"{number} sandboxes at once, each", "KiB", Samples("agent", [grown / number]), Samples("all of them", [grown])
    )
    one = Samples("all of them", [removed * 1e3])
    yield compare("removing them, each", "ms", Samples("agent", [removed * 1e3 / number]), one)


def _create_all(host: SandboxHost, events: SandboxHost, ids: list[str]) -> None:
    for sandbox_id in ids:
        host.begin(sandbox_id, memory_mib=16)
    waiting = set(ids)
    while waiting:
        waiting.discard(events.next("ready"))


def _remove_all(host: SandboxHost, ids: list[str]) -> None:
    for sandbox_id in ids:
        host.remove(sandbox_id)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def repeat(times: int, work: Callable[[], None]) -> None:
    """Do it so often."""
    for _ in range(times):
        work()


@define
class CrunByHand:
    """crun without the agent."""

    _data_dir: Path
    """The agent's: a sandbox of the agent is a container of crun's."""

    _namespace: MountNamespace
    _bundle: Path = field(init=False)
    _config: dict[str, object] = field(init=False)
    _rootfs: Path = field(init=False)
    _numbers: Iterator[int] = field(init=False, factory=count)

    def prepare(self, rootfs: Path) -> None:
        """Have a bundle like that of the sandbox `box`."""
        self._rootfs = rootfs
        self._config = json.loads((self._data_dir / "sandboxes" / "box" / "config.json").read_text())

    def create(self) -> float:
        """Make a container, and remove it; the seconds that the first took."""
        return self._inside(self._create)

    def execute(self, container: str, *command: str) -> None:
        """Run a command in a container of the agent's."""
        self._inside(lambda: self._call(self._data_dir / "runtime", "exec", container, *command))

    def _create(self) -> float:
        name = f"by-hand-{next(self._numbers)}"
        directory = self._data_dir.with_name(name)
        for part in ("rootfs", "upper", "work"):
            (directory / part).mkdir(parents=True)
        started = time.perf_counter()
        layers = f"lowerdir={self._rootfs},upperdir={directory}/upper,workdir={directory}/work"
        linux.mount("overlay", str(directory / "rootfs"), "overlay", 0, layers)
        linux_part = {**self._config["linux"], "cgroupsPath": f"/{self._data_dir.parent.name}-{name}"}  # type: ignore[dict-item]
        config = {**self._config, "root": {"path": str(directory / "rootfs")}, "linux": linux_part}
        (directory / "config.json").write_text(json.dumps(config))
        state = directory / "state"
        self._call(state, "run", "--detach", "--bundle", str(directory), name)
        elapsed = time.perf_counter() - started
        self._call(state, "delete", "--force", name)
        linux.unmount(str(directory / "rootfs"), linux.MNT_DETACH)
        shutil.rmtree(directory)
        return elapsed

    def _call(self, state: Path, *arguments: str) -> None:
        subprocess.run(
            ["crun", "--root", state, *arguments],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if arguments[0] == "exec" else subprocess.DEVNULL,
            check=True,
        )

    def _inside(self, work: Callable[[], T]) -> T:
        """In the mount namespace where crun sees no cgroup2."""
        return self._namespace.call(work)
