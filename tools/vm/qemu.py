"""One virtual machine with the guest image: its processes, its console, and the ways in."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import Factory, define, frozen

from tools.vm import cpio, guest_shell
from tools.vm.vsock import VsockBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from tools.vm.image import Image

AGENT_PORT: Final = 1024
_GUEST_CID: Final = 3
_VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"
_ENDS_WITHIN: Final = 5.0
"""Seconds for QEMU to end when it is told to."""


@frozen(kw_only=True)
class Machine:
    """How a virtual machine is made."""

    image: Image
    directory: Path
    """For its disk, sockets and console; what is in it belongs to this machine, over all its boots."""

    init: str = "/sbin/init"
    """PID 1: the agent is /usr/bin/arcbox-agent."""

    inject: Mapping[str, bytes | str] = Factory(dict)
    """Files to have in the guest's root before PID 1 starts; a text is the target of a symbolic link."""

    arguments: Sequence[str] = ()
    """More for QEMU."""

    parameters: str = ""
    """More for the guest kernel's command line."""

    shares: Mapping[str, Path] = Factory(dict)
    """Directories of this machine's, by tag of virtiofs."""

    memory_mib: int = 768
    console: bool = False
    """Whether the guest's console is this process's terminal; else a file has what is written there."""


@frozen
class Completed:
    """What came of a command in the guest."""

    status: int
    output: str
    """Of stdout and stderr."""


@define(eq=False)
class Vm:
    """A virtual machine that runs."""

    _directory: Path
    process: trio.Process
    """QEMU."""

    @property
    def address(self) -> str:
        """The agent's, as `arcboxctl --connect` takes it."""
        return f"unix:{self._directory}/vsock?port={AGENT_PORT}"

    @property
    def console(self) -> str:
        """What the guest has written on its console."""
        path = self._directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def wait(self) -> int:
        """The exit status of QEMU: 0 when the guest has powered off, or rebooted."""
        return await self.process.wait()

    async def run(self, *argv: str, input: str = "", env: Mapping[str, str] | None = None) -> Completed:  # noqa: A002
        """Carry out a command in the guest, as root, in no unit and no sandbox.

        Raises:
            OSError: the guest does not answer, or has gone.
        """
        request = json.dumps({"argv": argv, "input": input, "env": dict(env or {})}).encode() + b"\n"
        while True:
            answer = await self._ask(guest_shell.PORT, request)
            if answer:
                return Completed(**json.loads(answer))
            if self.process.returncode is not None:
                raise OSError("the guest has gone")
            await trio.sleep(0.1)  # it does not listen yet: nothing tells when it does

    async def output(self, *argv: str, **options: Any) -> str:  # noqa: ANN401  run()'s
        """The output of a command that succeeds."""
        done = await self.run(*argv, **options)
        assert done.status == 0, f"{argv} ended with {done.status}: {done.output}"
        return done.output

    async def connect(self, port: int) -> trio.SocketStream:
        """A connection to a port of the guest's.

        Raises:
            ConnectionRefusedError: nobody listens there.
        """
        stream = await trio.open_unix_socket(str(self._directory / "vsock"))
        try:
            await stream.send_all(b"CONNECT %d\n" % port)
            await _await_line(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _ask(self, port: int, request: bytes) -> bytes:
        """Send a line to a port of the guest's; returns all that is answered, nothing if nobody listens there."""
        received = b""
        with suppress(trio.BrokenResourceError, ConnectionRefusedError):
            async with await self.connect(port) as stream:
                await stream.send_all(request)
                received = b"".join([chunk async for chunk in stream])
        return received

    async def monitor(self, command: str) -> None:
        """Carry out a command of QEMU's monitor (QMP) that has no arguments, such as `stop` and `cont`."""
        async with await trio.open_unix_socket(str(self._directory / "qmp")) as stream:
            for name in ("qmp_capabilities", command):
                await stream.send_all(json.dumps({"execute": name}).encode() + b"\n")
                answer = b""
                while b'"return"' not in answer:
                    received = await stream.receive_some()
                    if not received or b'"error"' in received:
                        raise OSError(f"{name}: {(answer + received).decode()}")
                    answer += received


@asynccontextmanager
async def running(machine: Machine) -> AsyncIterator[Vm]:
    """Switch a machine on; at the end of the context it is off, whatever state it was in."""
    directory = machine.directory
    await _make_disk(machine)
    (directory / "initrd").write_bytes(machine.image.initrd.read_bytes() + cpio.archive(_injected(machine)))
    with _listening(directory / "vhost") as for_qemu, _listening(directory / "vsock") as for_clients:
        async with trio.open_nursery() as nursery:
            await nursery.start(VsockBackend(_GUEST_CID).run, for_qemu, for_clients)
            processes = list[trio.Process]()
            try:
                for tag, path in machine.shares.items():
                    processes.append(await _serve_files(directory / f"{tag}.fs", path))
                qemu = await _open(_command(machine), None if machine.console else directory / "qemu.log")
                processes.append(qemu)
                processes.append(await _leash(process.pid for process in processes))
                yield Vm(directory, qemu)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ENDS_WITHIN):
                    for process in reversed(processes):
                        process.kill()
                        await process.wait()
                nursery.cancel_scope.cancel()


async def _await_line(stream: trio.SocketStream) -> None:
    """Take one line off a stream, and no byte of what follows. Raises ConnectionRefusedError if it ends before."""
    while (byte := await stream.receive_some(1)) != b"\n":
        if not byte:
            raise ConnectionRefusedError("nobody listens on that port of the guest")


async def _make_disk(machine: Machine) -> None:
    """An overlay of the image, which stays as it is."""
    disk = machine.directory / "root.qcow2"
    if not disk.exists():
        backing = ("-F", "raw", "-b", str(machine.image.disk))
        await trio.run_process(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(disk)])


def _injected(machine: Machine) -> dict[str, bytes | str]:
    files = {f"inject/{path.lstrip('/')}": content for path, content in machine.inject.items()}
    if not machine.console:
        files["inject/usr/local/lib/arcbox-vm/guest_shell.py"] = Path(guest_shell.__file__).read_bytes()
    return files


def _listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    return listening


async def _serve_files(path: Path, shared: Path) -> trio.Process:
    """A virtiofs server for one directory, once it listens."""
    path.unlink(missing_ok=True)
    command = [_VIRTIOFSD, f"--socket-path={path}", "-o", f"source={shared}", "-o", "cache=auto"]
    process = await _open(command, path.with_suffix(".log"))
    while not path.exists():
        if process.poll() is not None:
            raise OSError(path.with_suffix(".log").read_text())
        await trio.sleep(0.02)
    return process


async def _leash(pids: Iterable[int]) -> trio.Process:
    """A process that kills others when we end without having done so: its standard input ends with us."""
    script = 'read -r line; kill -KILL "$@"'
    return await trio.lowlevel.open_process(
        ["sh", "-c", script, "sh", *map(str, pids)], stdin=PIPE, stderr=DEVNULL, start_new_session=True
    )


async def _open(command: Sequence[str], log: Path | None) -> trio.Process:
    """Start a process whose output goes to a file; or, without one, that has our terminal."""
    if log is None:
        return await trio.lowlevel.open_process(command)
    with log.open("ab") as output:
        return await trio.lowlevel.open_process(
            command, stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True
        )


def _command(machine: Machine) -> list[str]:
    directory = machine.directory
    size = f"{machine.memory_mib}M"
    parameters = ["console=ttyS0", "rw", "quiet", "panic=-1", "mitigations=off", "systemd.getty_auto=no"]
    if not machine.console:
        parameters.append("systemd.mask=console-getty.service")
    parameters += [f"init={machine.init}", machine.parameters]
    command = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", size),
        *("-cpu", "max,la57=off"),  # a fifth level of page tables makes each miss of the emulated TLB longer
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        # The back ends of vhost-user have the guest's memory mapped.
        *("-object", f"memory-backend-memfd,id=memory,size={size},share=on", "-numa", "node,memdev=memory"),
        *("-kernel", str(machine.image.kernel), "-initrd", str(directory / "initrd"), "-append", " ".join(parameters)),
        *("-drive", f"if=virtio,format=qcow2,discard=unmap,cache=unsafe,file={directory / 'root.qcow2'}"),
        *("-chardev", f"socket,id=vsock,path={directory / 'vhost'}", "-device", "vhost-user-vsock-pci,chardev=vsock"),
        *("-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"),
        *("-serial", "mon:stdio" if machine.console else f"file:{directory / 'console.log'}"),
    ]
    for tag in machine.shares:
        command += ["-chardev", f"socket,id={tag},path={directory / tag}.fs"]
        command += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    return [*command, *machine.arguments]
