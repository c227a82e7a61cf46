"""`connect` and `AgentClient`."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from errno import ENOENT
from typing import TYPE_CHECKING

import trio
from attrs import evolve, frozen

from arcbox_client._byte_streams import TrioByteStream, dial
from arcbox_client._execution_requests import ExecutionRequests
from arcbox_client._file_requests import FileRequests
from arcbox_client._machine_requests import MachineRequests
from arcbox_client._multiplexer import Multiplexer
from arcbox_client._sandbox_requests import SandboxRequests
from arcbox_client.addresses import parse_address
from arcbox_client.errors import ConnectionLostError, FileReadError, NotFoundError
from arcbox_client.handles import SandboxHandle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack

    from arcbox_client._sandbox_requests import SandboxOptions
    from arcbox_client.addresses import Address
    from arcbox_client.streams import Notifications

DEFAULT_DATA_DIR = "/var/lib/arcbox/sandboxes"
"""Where agents keep sandboxes that were not told otherwise: their setting `sandbox.data_dir`."""

_REMOVAL_WITHIN = 30.0
"""Seconds for removing a sandbox whose context was left, cancelled or not."""

_TIMEOUT = 30.0
"""Seconds for connecting, and for a request that is not slow."""


def connect(
    address: str | Address, *, timeout: float = _TIMEOUT, shared_streams: bool = False
) -> AbstractAsyncContextManager[AgentClient]:
    """A client of the agent at an address.

    Use it as `async with connect("unix:/run/arcbox.sock") as client:`.

    Args:
        address: `vsock:CID:PORT`, `unix:PATH` or `unix:PATH?port=N`, or what `parse_address` made of it.
        timeout: seconds in which the connection must be there, and the deadline of each request that is not slow.
        shared_streams: whether runs, execs and events share the client's connection; see `AgentClient`.

    Raises:
        InvalidAddressError: `address` has no form that exists; at once.
        ConnectError: nobody is there; when the context is entered.
    """
    where = parse_address(address) if isinstance(address, str) else address

    @asynccontextmanager
    async def connected() -> AsyncIterator[Multiplexer]:
        async with Multiplexer(await dial(where, timeout), str(where)).running() as multiplexer:
            yield multiplexer

    @asynccontextmanager
    async def client() -> AsyncIterator[AgentClient]:
        async with connected() as multiplexer:
            yield AgentClient(multiplexer=multiplexer, timeout=timeout, connected=None if shared_streams else connected)

    return client()


@frozen(eq=False, kw_only=True)
class AgentClient(MachineRequests, SandboxRequests, ExecutionRequests, FileRequests):
    """An agent, from the host: one method per request of the protocol. Made by `connect` or `AgentClient.over`.

    Any number of tasks may use it at once; replies find their requests by trace id, in whatever order they come. The
    replies are the protobuf messages of `protocol.arcbox_v1` and `protocol.sandbox_v1`; where a reply is empty
    the method returns None, and `mmap_read_file` returns bytes.

    A request has 30 s, or what `connect` was told; one that is marked as slow has 300 s. `within` sets another
    deadline, slow or not. Besides what is said at each, every method raises:

    - `RequestFailedError`, or the subclass for its code (`NotFoundError`, `ConflictError`, ...): the agent said no;
    - `TimedOutError`: no reply in time;
    - `ConnectionLostError`: the connection ended, or had ended already;
    - `ProtocolViolationError`: the reply is not what the protocol says it is;
    - `ValueError`: an argument that the request has no room for, such as a negative offset.

    A request that is cancelled or times out leaves the client as usable as it was; a late reply is dropped.

    Streams (whatever is entered by `async with`, and the contents of files) have a connection of their own each,
    because the protocol has no way to end one but closing its connection: leaving their context early kills what still
    runs, and a slow consumer slows its own stream only. On a client made with `shared_streams`, or by `over`,
    they share the client's connection. Then what comes after an early leave is dropped, while the process in the guest
    goes on until the client is closed; and a consumer that lets more than 1 MiB wait holds up all other replies.
    """

    @classmethod
    def over(cls, stream: trio.abc.Stream, *, timeout: float = _TIMEOUT) -> AbstractAsyncContextManager[AgentClient]:
        """A client over any byte stream to an agent, which it closes at the end. Its streams share it."""

        @asynccontextmanager
        async def client() -> AsyncIterator[AgentClient]:
            async with Multiplexer(TrioByteStream(stream), "the agent").running() as multiplexer:
                yield cls(multiplexer=multiplexer, timeout=timeout)

        return client()

    @asynccontextmanager
    async def sandbox(
        self, id: str = "", *, keep: bool = False, **options: Unpack[SandboxOptions]
    ) -> AsyncIterator[SandboxHandle]:
        """A sandbox for as long as the context lasts: `async with client.sandbox(image="alpine") as box:`.

        It is ready in there, and removed by force after it, or left alone with `keep`.

        Args:
            id: "" lets the agent choose one.
            keep: whether it stays.
            options: see `SandboxOptions`.

        Raises:
            SandboxFailedError: it did not get ready; nothing is left of it.
        """
        created = await self.sandbox_create(id, **options)
        try:
            await self.sandbox_wait_ready(created.id)
            yield SandboxHandle(self, created.id)
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                with trio.move_on_after(_REMOVAL_WITHIN, shield=True), suppress(NotFoundError, ConnectionLostError):
                    await self.sandbox_remove(created.id, force=True)

    def sandbox_handle(self, id: str) -> SandboxHandle:
        """A sandbox that exists, as an object; whether it does shows at its first use."""
        return SandboxHandle(self, id)

    @property
    def can_reconnect(self) -> bool:
        """Whether `reconnected` makes a connection of its own."""
        return self._connected is not None

    @asynccontextmanager
    async def reconnected(self) -> AsyncIterator[AgentClient]:
        """The same client over a connection of its own, made now; over the same one where streams share it."""
        if self._connected is None:
            yield self
        else:
            async with self._connected() as multiplexer:
                yield evolve(self, multiplexer=multiplexer)

    @property
    def notifications(self) -> Notifications:
        """What the agent says without having been asked: port bindings that change."""
        return self._multiplexer.notifications

    async def sandbox_log(self, sandbox_id: str, *, data_dir: str = DEFAULT_DATA_DIR) -> bytes:
        """What a sandbox's initial command wrote: the newest of it, 256 KiB at least; empty if it has none.

        The protocol has no request for that, so it is read from where the agent keeps it.

        Args:
            sandbox_id: the sandbox, in whatever state.
            data_dir: the agent's setting `sandbox.data_dir`.

        Raises:
            NotFoundError: there is no such sandbox.
            FileReadError: it is not kept there.
        """
        await self.sandbox_inspect(sandbox_id)  # from here on it is no path to anywhere else
        record = f"{data_dir}/records/{sandbox_id}"
        try:
            return await self.mmap_read_file(f"{record}.log")
        except FileReadError as error:
            if error.errno != ENOENT:
                raise
        await self.mmap_read_file(f"{record}.json", length=1)
        return b""
