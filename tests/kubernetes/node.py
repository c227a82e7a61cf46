"""A machine of its own, as far as namespaces make one, for a Kubernetes that must not touch the one that it runs on."""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import trio
from attrs import frozen

from arcbox_client._agent_process import COMMAND, running_agent
from arcbox_guest import mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arcbox_client._agent_process import RunningAgent

_NAMESPACES: Final = ("--mount", "--net", "--pid", "--cgroup", "--ipc", "--uts")

_SYSCTLS: Final = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
"""The kubelet's wishes, for the whole machine. Files hide them that have these values already."""

_JOIN: Final = ("/bin/sh", "-ec", 'for group in $1; do echo $$ > $group/cgroup.procs; done; shift; exec "$@"', "sh")
"""Executes a command in cgroups, which are its first argument."""

_UNSHARE: Final = ("--propagation", "private", "--fork", "--kill-child", "--mount-proc")

_SETUP: Final = """
umount --lazy --recursive /sys
mount -t sysfs sysfs /sys  # it shows the network of whoever mounts it
mount -t tmpfs tmpfs /sys/fs/cgroup
{cgroups}
mount -t tmpfs tmpfs /run
mount --bind {directory}/lib /var/lib
{sysctls}
hostname node
ip link set lo up
ip link add eth0 type veth peer name outside
ip address add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip link set outside up
ip route add default via 192.0.2.1
echo ready
exec catatonit -P
"""

_SETTINGS: Final = """
clock.follow_host = false
power.off = "disabled"
network.enabled = false
runtime.data_device = "none"
runtime.binary_dirs = ["{directory}/bin", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
runtime.containerd_args = ["--config={directory}/containerd.toml"]
proxy.docker.listen = []
proxy.kubernetes.listen = ["unix:{directory}/kubernetes.sock"]
"""
"""All else is as in a guest: the paths, too."""

_GONE_WITHIN: Final = 30.0
"""Seconds for the processes of a node that was killed."""


@frozen
class Node:
    """A node that runs."""

    directory: Path
    """Holds its /var/lib (in `lib`), the agent's settings and sockets."""

    pid: int
    """Of its first process, which reaps orphans."""

    _groups: str
    """Its cgroups."""

    def entered(self, *command: str) -> list[str]:
        """The command that runs another one in the node."""
        return [*_JOIN, self._groups, "nsenter", "--target", str(self.pid), *_NAMESPACES, *command]

    def path(self, path: str) -> Path:
        """Where this machine sees an absolute path of the node."""
        return Path(f"/proc/{self.pid}/root{path}")

    async def run(self, *command: str) -> str:
        """What a command prints that is run in the node, and must succeed."""
        done = await self.attempt(*command)
        assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode()

    async def attempt(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        """A command that is run in the node, from its start to its end."""
        return await trio.run_process(self.entered(*command), capture_stdout=True, capture_stderr=True, check=False)

    @contextmanager
    def agent(self) -> Iterator[RunningAgent]:
        """One life of an agent in the node; its pid is that of this machine."""
        settings = _SETTINGS.format(directory=self.directory)
        own = Path(tempfile.mkdtemp(prefix="agent-", dir=self.directory))
        with running_agent(own, settings=settings, command=self.entered(*COMMAND)) as agent:
            assert agent.pid is not None
            (process,) = psutil.Process(agent.pid).children()
            agent.pid = process.pid
            try:
                yield agent
            finally:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
                    process.wait(_GONE_WITHIN)


@contextmanager
def node(directory: Path) -> Iterator[Node]:
    """Have a node for as long as the context lasts; then nothing of it is left but the directory.

    Args:
        directory: empty, its path short, not in /run or /var/lib.
    """
    (directory / "lib").mkdir()
    with ExitStack() as clean_up:
        mounts, groups = [], []
        for mount in mountinfo.mounts(mountinfo.OWN.read_bytes()):
            if mount.kind in ("cgroup", "cgroup2"):
                group = Path(mount.target, f"arcbox-{directory.name}")
                group.mkdir()
                clean_up.callback(_remove_group, group)
                _allow_processors(group)
                groups.append(str(group))
                target = mount.target
                mounts.append(f"mkdir -p {target}; mount -t {mount.kind} -o {mount.options} {mount.kind} {target}")
        setup = _SETUP.format(
            directory=directory,
            cgroups="\n".join(mounts),
            sysctls="\n".join(
                f"echo {value} > {directory}/{name.replace('/', '.')}; "
                f"mount --bind {directory}/{name.replace('/', '.')} /proc/sys/{name}"
                for name, value in _SYSCTLS.items()
            ),
        )
        first = subprocess.Popen(  # noqa: S603  namespaces, by tools of the system
            [
                *(*_JOIN, " ".join(groups), "setpriv", "--pdeathsig", "KILL"),
                *("unshare", *_NAMESPACES, *_UNSHARE, "/bin/sh", "-ec", setup),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        clean_up.callback(first.wait)
        clean_up.callback(first.kill)
        assert first.stdout is not None
        clean_up.callback(first.stdout.close)
        assert first.stdout.readline() == b"ready\n"
        (process,) = psutil.Process(first.pid).children()
        yield Node(directory, process.pid, " ".join(groups))


def _allow_processors(group: Path) -> None:
    """A new cgroup of v1's cpuset has none, and takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists() and not (group / "cgroup.controllers").exists():
            (group / name).write_text((group.parent / name).read_text())


def _remove_group(group: Path) -> None:
    """Its processes got SIGKILL with their process namespace; until the last is gone it is busy."""
    deadline = time.monotonic() + _GONE_WITHIN
    while group.exists():
        try:
            for directory in sorted(path for path in (group, *group.rglob("*")) if path.is_dir())[::-1]:
                directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
