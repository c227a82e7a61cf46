"""Agents that end at a step of what they do, and what there may be on the machine when the next one has begun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import trio
from attrs import define

from arcbox_client._agent_process import RunningAgent
from arcbox_client.errors import ConnectError, ConnectionLostError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

LIVE: Final = ("ready", "running")
_THERE: Final = (*LIVE, "paused")
_PROGRAM: Final = Path(__file__).with_name("faulty_agent.py")
_SETTLED: Final = 1.3
"""Seconds without a step after which an operation is over: a record waits up to a second for what else may happen."""

_AT_REST: Final = 30.0
"""Seconds in which the next agent must have put all in order; it takes a fraction of one."""


@define(eq=False)
class Faults:
    """A machine whose agents can be told at which step to end. Its network namespace stands for the guest's."""

    machine: Machine
    forks: subprocess.Popen[bytes]
    """The parent of all agents."""

    @classmethod
    @contextmanager
    def on(cls, machine: Machine, settings: str) -> Iterator[Faults]:
        """A machine whose agents have settings of their own."""
        variable = f"ARCBOX_FAULTS={machine.directory}"
        apart = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', "env", variable]
        command = [*apart, sys.executable, "-P", str(_PROGRAM)]
        (machine.directory / "agent.toml").write_text(settings.replace("$DIRECTORY", str(machine.directory)))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forks:  # noqa: S603  ours
            faults = cls(machine, forks)
            try:
                yield faults
            finally:
                forks.kill()
                faults.kill_sandboxes()

    def kill_sandboxes(self) -> None:
        """Have nothing left of a test that has failed."""
        self.machine.kill_inits()
        for path in self.machine.cgroups():
            for directory, _, _ in os.walk(path, topdown=False):
                Path(directory).rmdir()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[AgentClient]:
        """An agent, and a client of it. It is killed at the end, if it has not been before."""
        await self.begin()
        try:
            async with self.connected() as client:
                yield client
        except BaseException:
            print(self.machine.log)  # noqa: T201  pytest shows it
            raise
        finally:
            with trio.move_on_after(_AT_REST, shield=True):
                await self.end()
        assert "Traceback" not in self.machine.log, self.machine.log

    @asynccontextmanager
    async def next_agent(self) -> AsyncIterator[AgentClient]:
        """Another agent in place of the one that is there, which does all for the first time; and a client of it."""
        await self.end()
        await self.begin()
        async with self.connected() as client:
            await client.sandbox_list()
            yield client

    async def begin(self) -> None:
        """Start an agent: there is none."""
        log, address = self._path("agent.log"), f"unix:{self._path('agent.sock')}"
        log.unlink(missing_ok=True)
        arguments = ["serve", "--config", str(self._path("agent.toml")), "--listen", address]
        pid = int(await self._ask(json.dumps({"arguments": arguments, "log": str(log)})))
        self.machine.agent = RunningAgent(address, pid, log)

    async def end(self) -> None:
        """Kill the agent, if it has not been, and wait until it is gone."""
        if self.is_running():
            self.machine.process.kill()
        await self._ask("")

    def is_running(self) -> bool:
        """Whether the agent is."""
        agent = self.machine.agent
        return agent is not None and agent.pid is not None and psutil.pid_exists(agent.pid)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[AgentClient]:
        """A client of the agent, which may just have begun.

        Raises:
            ConnectError: it was killed before it could be connected to.
        """
        with trio.fail_after(_AT_REST):
            while True:
                try:
                    async with self.machine.client() as client:
                        await client.ping()
                except ConnectError:
                    if not self.is_running():
                        raise
                    await trio.sleep(0.01)  # it begins
                else:
                    break
        async with self.machine.client() as client:
            yield client

    async def _ask(self, order: str) -> str:
        """Give the forks' parent an order, if it is one, and read a line of its answer."""
        stdin, stdout = self.forks.stdin, self.forks.stdout
        assert stdin is not None
        assert stdout is not None
        if order:
            stdin.write(f"{order}\n".encode())
            stdin.flush()
        return (await trio.to_thread.run_sync(stdout.readline)).decode()  # not abandoned: an answer comes at once

    async def steps(self, operation: Callable[[], Awaitable[object]]) -> list[str]:
        """The names of the steps that an operation takes, in the order in which it takes them for the first time."""
        self._path("steps").write_text("")
        self._path("armed").write_text("")
        await operation()
        taken: list[str] = []
        while taken != (taken := self._path("steps").read_text().splitlines()):  # noqa: ASYNC110  nobody tells
            await trio.sleep(_SETTLED)
        self.disarm()
        return taken

    async def killed_at(self, step: str, operation: Callable[[], Awaitable[object]]) -> bool:
        """Have the agent end at a step of an operation; False if it has come through that alive."""
        self._path("armed").write_text(step)
        with suppress(ConnectError, ConnectionLostError):
            await operation()
        with trio.move_on_after(_SETTLED):
            await trio.lowlevel.checkpoint()
            while self.is_running():  # noqa: ASYNC110  it is no child of Trio's
                await trio.sleep(0.005)
        self.disarm()
        return not self.is_running()

    def disarm(self) -> None:
        """Have no step be an agent's last."""
        self._path("armed").unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.machine.directory / name

    async def check(self, client: AgentClient) -> None:
        """Find a consistent world: what is live works, what is not says why, and nothing is left of what is gone."""
        for box in (await client.sandbox_list()).sandboxes:
            if box.state in LIVE:
                async with client.sandbox_exec(box.id, ["true"]) as session:
                    completed = await session.collect()
                    assert completed.exit_code == 0, completed
            elif box.state == "failed":
                with suppress(NotFoundError):  # it is being swept
                    assert (await client.sandbox_inspect(box.id)).error
        deadline = trio.current_time() + _AT_REST
        while left := await self._left(client):
            assert trio.current_time() < deadline, (left, (await client.sandbox_list()).sandboxes)
            await trio.sleep(0.02)

    async def clear(self, client: AgentClient) -> None:
        """Remove everything; nothing must be left."""
        for box in (await client.sandbox_list()).sandboxes:
            await client.sandbox_remove(box.id, force=True)
        for snapshot in (await client.list_snapshots()).snapshots:
            await client.delete_snapshot(snapshot.id)
        await self.check(client)
        assert self.machine.mounts_of_driver() == 0

    async def _left(self, client: AgentClient) -> list[str]:
        """What is on the machine of sandboxes and snapshots that the agent does not know of."""
        boxes = (await client.sandbox_list()).sandboxes
        known, live = {box.id for box in boxes}, {box.id for box in boxes if box.state in _THERE}
        snapshots = {snapshot.id for snapshot in (await client.list_snapshots()).snapshots}
        left = [f"state {box.state}" for box in boxes if box.state in ("starting", "stopping")]
        left += [f"cgroup {path}" for path in self.machine.cgroups() if path.name not in {*live, ".clients"}]
        left += [f"cgroup {path}" for path in self._clients() if path.name not in live]
        left += [f"mount {line}" for line in self.machine.mounts()]
        left += (
            self._unknown("sandboxes", known) + self._unknown("runtime", live) + self._unknown("snapshots", snapshots)
        )
        left += self._unknown("records", {f"{box}.{suffix}" for box in known for suffix in ("json", "log")})
        left += self._unknown("layers", self._layers()) + self._unknown("store/staging", set())
        left += [f"process {name}" for name in self._processes(live)]
        left += [f"loop device of {name}" for name in self._loop_devices()[len(live) :]]
        links = self._links()
        left += [f"links {links}" for _ in "1" if len(links) != sum(bool(b.ip_address) and b.id in live for b in boxes)]
        return left

    def _unknown(self, kind: str, known: set[str]) -> list[str]:
        directory = Path(self.machine.data_dir, kind)
        return [f"file {path}" for path in directory.glob("*") if path.name not in known]

    def _clients(self) -> Iterator[Path]:
        for path in self.machine.cgroups():
            if path.name == ".clients":
                yield from (child for child in path.iterdir() if child.is_dir())

    def _layers(self) -> set[str]:
        """Those that sandboxes and snapshots name, or that theirs were merged into."""
        data_dir = Path(self.machine.data_dir)
        text = " ".join(path.read_text() for path in data_dir.glob("sandboxes/*/layers"))
        text += " ".join(path.read_text() for path in data_dir.glob("snapshots/*/snapshot.json"))
        named = set(re.findall(r"\b[0-9a-f]{8}\b", text))
        links = [data_dir / "layers" / name / "merged" for name in named]
        return named | {str(link.readlink()) for link in links if link.is_symlink()}

    def _processes(self, live: set[str]) -> Iterator[str]:
        """Those that have to do with sandboxes, but not with live ones."""
        data_dir = self.machine.data_dir
        of_live = tuple(f"{data_dir}/sandboxes/{box}/" for box in live)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if data_dir in line and not any(name in line for name in of_live):
                    yield line
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it has just ended
                if self._is_starter(process) and process.ppid() != self.machine.process.pid:
                    directory = f"{process.cwd()}/"  # a session's, of a parent that has begun
                    if not directory.startswith(of_live):
                        yield f"parent of a detached process in {directory}"

    def _is_starter(self, process: psutil.Process) -> bool:
        """Whether it is `oci.starter` of an agent here, or a parent that it has forked."""
        here, there = (Path(f"/proc/{pid}/ns/net").readlink() for pid in (self.forks.pid, process.pid))
        return here == there and any(argument.endswith("/starter.py") for argument in process.cmdline())

    def _loop_devices(self) -> Sequence[str]:
        files = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # it has just been detached
                files.append(path.read_text().strip())
        return [name for name in files if str(self.machine.directory) in name]

    def _links(self) -> list[str]:
        text = Path(f"/proc/{self.forks.pid}/net/dev").read_text()
        return [name for name in re.findall(r"^ *([^:]+):", text, re.MULTILINE) if name.startswith("arcb-")]
