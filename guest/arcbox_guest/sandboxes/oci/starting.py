"""The agent's end of `starter`: parents for detached processes."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.child import Child, PidFd
from arcbox_guest.errors import GuestError
from arcbox_guest.sandboxes.oci import starter as program
from arcbox_guest.sandboxes.oci.root_files import open_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup
    from arcbox_guest.sandboxes.oci.namespace import MountNamespace
    from arcbox_guest.sandboxes.oci.recording import Ends

_PATIENCE: Final = 10.0
"""Seconds in which a parent must have been forked, and have begun: usually 0.02."""


@frozen
class Gate:
    """A parent that is being forked, and waits to be told what to start."""

    _socket: socket.socket

    async def parent(self) -> tuple[int, PidFd]:
        """Wait for the parent; its process id. To be called once.

        Raises:
            GuestError: there is none.
        """
        pid, (pidfd,) = await self._receive()
        return int(pid), PidFd(pidfd)

    async def open(self, directory: Path, argv: Sequence[str], ends: Ends, configuration: bytes) -> None:
        """Have the runtime's command line executed, in a session's directory; wait until that is on record.

        The runtime gets the configuration as file 3.

        Raises:
            OSError: the parent is gone.
            GuestError: it can't begin.
        """
        order = json.dumps({"directory": str(directory), "argv": argv}).encode()
        memory = os.memfd_create("configuration")
        try:
            os.write(memory, configuration)
            socket.send_fds(self._socket, [order], [ends.stdin, ends.stdout, ends.stderr, memory])
        finally:
            os.close(memory)
        await self._receive()

    async def _receive(self) -> tuple[bytes, list[int]]:
        """The next packet, and its files."""
        try:
            with trio.fail_after(_PATIENCE):
                await trio.lowlevel.wait_readable(self._socket)
            packet, received, _, _ = socket.recv_fds(self._socket, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except (trio.TooSlowError, OSError) as error:
            raise GuestError("the process has no parent that answers") from error
        if not packet:
            raise GuestError("the process's parent has ended before it began")
        return packet, received

    def close(self) -> None:
        """A parent that was told nothing ends."""
        self._socket.close()


@define(eq=False)
class Starter:
    """The one starter of a driver. It is started when it is first needed, and ends with the agent."""

    _namespace: MountNamespace
    """Where the runtime is to be called."""

    _sealed: int | None
    """The sealed runtime, an open file that parents have under the same number."""

    _starting: trio.Lock = field(init=False, factory=trio.Lock)
    _child: Child | None = field(init=False, default=None)
    _socket: socket.socket | None = field(init=False, default=None)

    async def fork(self, group: ProcessGroup) -> Gate:
        """Have a group, and a parent that enters it.

        Raises:
            OSError: there can't be such a group, or a starter.
        """
        async with self._starting:
            if self._child is None or self._child.ended():
                await self.close()
                await self._namespace.run(self._start)
        return await trio.to_thread.run_sync(self._fork, group)

    async def close(self) -> None:
        """End it. Parents go on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            await self._child.close()
            self._child = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = [theirs.fileno(), *([] if self._sealed is None else [self._sealed])]
        with theirs:
            argv = [sys.executable, "-I", "-S", program.__file__, str(theirs.fileno())]
            self._child = Child.start(argv, pass_fds=inherited)
        ours.settimeout(_PATIENCE)
        self._socket = ours

    def _fork(self, group: ProcessGroup) -> Gate:
        group.create()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gate = Gate(ours)
        ours.setblocking(False)
        try:
            with theirs, open_path(group.procs, os.O_WRONLY) as procs:
                assert self._socket is not None  # noqa: S101  for mypy
                socket.send_fds(self._socket, [b"fork"], [procs, theirs.fileno()])
        except BaseException:
            gate.close()
            with suppress(OSError):
                group.remove()
            raise
        return gate
