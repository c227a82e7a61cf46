"""Clients whose process has a terminal: the runtime opens it, and sends the master to a socket.

As relays between two terminals neither will do: crun (1.8) takes a process's first output for an error message of its
own, and passes no resize on.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from arcbox_guest.errors import GuestError, TimedOutError
from arcbox_guest.sandboxes.oci.clients import Client

if TYPE_CHECKING:
    from arcbox_guest.sandboxes.oci.clients import Order

_PATIENCE: Final = 10.0
"""Seconds in which a client must have sent the terminal."""

_COMPLAINT: Final = 4096
"""Bytes of what a client says of its failure."""


@define(eq=False)
class ConsoleSocket:
    """A client, and the socket to which it will send the master of the process's terminal."""

    client: Client
    _listener: socket.socket
    _path: str
    _complaint: int
    """An open file with what the client says of its failure."""

    @classmethod
    def start(cls, order: Order, directory: str, name: str) -> ConsoleSocket:
        """Start a client, whose command line names the socket. Blocks; to be called in the driver's namespace.

        Args:
            order: what to run.
            directory: where the socket is, and the client's working directory: an address has no room for long paths.
            name: of the socket.

        Raises:
            OSError: it can't be.
        """
        with ExitStack() as stack:
            complaint = os.memfd_create("complaint", os.MFD_CLOEXEC)
            stack.callback(os.close, complaint)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{opened}/{name}")
            finally:
                os.close(opened)
            path = os.path.join(directory, name)
            stack.callback(os.unlink, path)
            listener.listen(1)
            client = Client.start(order, subprocess.DEVNULL, subprocess.DEVNULL, complaint, cwd=directory)
            stack.pop_all()
        return cls(client, listener, path, complaint)

    async def receive(self) -> int:
        """Wait for the master; an open file.

        Raises:
            GuestError: the client has failed.
        """
        master: list[int] = []
        try:
            with trio.move_on_after(_PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive, master, nursery.cancel_scope)
                    await self.client.child.wait()
                    nursery.cancel_scope.cancel()
                if not master:
                    raise GuestError(self._failure())  # noqa: TRY301  what is open is closed below
        except BaseException:
            for fd in master:
                os.close(fd)
            raise
        if not master:
            raise TimedOutError("the OCI runtime did not open a terminal for the process in time")
        return master[0]

    def close(self) -> None:
        """Remove the socket."""
        self._listener.close()
        os.close(self._complaint)
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    async def _receive(self, master: list[int], done: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(self._listener)
        connection, _ = self._listener.accept()
        with connection:
            await trio.lowlevel.wait_readable(connection)
            _, master[:], _, _ = socket.recv_fds(connection, 64, 1, socket.MSG_CMSG_CLOEXEC)
        done.cancel()

    def _failure(self) -> str:
        text = os.pread(self._complaint, _COMPLAINT, 0).decode("utf-8", "replace").strip()
        return f"the process could not be started: {text or 'the OCI runtime does not say why'}"
