"""What a detached process writes and reads, as the agent sees it: files, and a recorder that tells of them.

`recorder` is the program, and says how the files are made.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

from arcbox_guest.errors import GuestError, OutOfRangeError, UnavailableError
from arcbox_guest.sandboxes.detached import Channel, Piece
from arcbox_guest.sandboxes.oci import recorder as program
from arcbox_guest.sandboxes.oci.streams import enlarge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arcbox_guest.sandboxes.model import TerminalSize

log = logging.getLogger(__name__)

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""

_INPUT: Final = 1024 * 1024
"""Bytes of input that wait for the process at most."""

_PACKET: Final = 4096
"""Bytes: more than a state needs."""

_PATIENCE: Final = 10.0
"""Seconds in which a recorder must answer: usually 0.001, and 0.05 for one that has to be started."""

_AGAIN: Final = 1.0
"""Seconds after which it is tried again to have a recorder."""

_THREADS: Final = trio.CapacityLimiter(16)
"""For reading and writing files of recordings."""


@define(eq=False)
class Recorder:
    """The one recorder of a driver. It is started when it is first needed, and ends by itself."""

    directory: Path
    """Where its socket is; absolute."""

    _starting: trio.Lock = field(init=False, factory=trio.Lock)
    _held: socket.socket | None = field(init=False, default=None)
    """Has it stay between two sessions."""

    async def connect(self) -> socket.socket:
        """A new connection.

        Raises:
            UnavailableError: there is no recorder, and none can be started.
        """
        try:
            async with self._starting:
                if self._held is None:
                    self._held = await self._connect()
                try:
                    return await self._dial()
                except ConnectionError:  # the last one has ended
                    self._held.close()
                    self._held = await self._connect()
                    return await self._dial()
        except OSError as error:
            raise UnavailableError(f"output can't be recorded: {error.strerror or error}") from error

    def close(self) -> None:
        """Let it end when it has nothing to record any more."""
        if self._held is not None:
            self._held.close()
            self._held = None

    async def _connect(self) -> socket.socket:
        with suppress(ConnectionError, FileNotFoundError):
            return await self._dial()
        await trio.to_thread.run_sync(self._start, limiter=_THREADS)
        return await self._dial()

    async def _dial(self) -> socket.socket:
        await trio.lowlevel.checkpoint()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)  # it is there at once, or not at all
        opened = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{opened}/recorder")  # an address has no room for a long path
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(opened)
        return connection

    def _start(self) -> None:
        opened = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                path = f"/proc/self/fd/{opened}/recorder"
                with suppress(FileNotFoundError):
                    os.unlink(path)
                listener.bind(path)
                listener.listen(64)
                self._spawn(listener)
        finally:
            os.close(opened)

    def _spawn(self, listener: socket.socket) -> None:
        with open(self.directory / "recorder.log", "ab") as log:
            # By a shell that ends at once: it is nobody's child who would have to wait for it.
            subprocess.run(  # noqa: S603  our own program
                ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-I", "-S", program.__file__, str(listener.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
                check=True,
            )


@frozen
class Ends:
    """What a process gets as its standard files."""

    stdin: int
    stdout: int
    stderr: int


@define(eq=False, kw_only=True)
class Recording:
    """What is recorded of one session."""

    directory: Path
    """The session's."""

    terminal: bool
    _recorder: Recorder
    _limit: int
    """Bytes that are kept of each channel, and an eighth more."""

    lengths: dict[Channel, int] = field(init=False, factory=lambda: dict.fromkeys(Channel, 0))
    """Bytes that were ever written to each channel."""

    stdin_closed: bool = field(init=False, default=True)
    stdin_written: int = field(init=False, default=0)
    """Bytes of input that were accepted."""

    complete: bool = field(init=False, default=False)
    """Whether nothing more is waited for."""

    _taken: int = field(init=False, default=0)
    _last: bool = field(init=False, default=False)
    """Whether the end of the input was accepted."""

    _untold: bool = field(init=False, default=False)
    """Whether the recorder has still to be told of input."""

    _known: trio.Event = field(init=False, factory=trio.Event)
    """Set when the recorder has told its state for the first time, or needs not."""

    _connection: socket.socket | None = field(init=False, default=None)
    """Does not block."""

    _changed: trio.Event = field(init=False, factory=trio.Event)
    _writing: trio.Lock = field(init=False, factory=trio.Lock)

    def make(self, *, stdin: bool, merged: bool) -> None:
        """Have all the files. Blocks.

        Raises:
            OSError: the file system is full, say.
        """
        read = ["stdin"] if stdin or self.terminal else []
        written = ["stdout"] if merged or self.terminal else ["stdout", "stderr"]
        for name in [] if self.terminal else [*read, *written]:
            os.mkfifo(f"{self.directory}/{name}.fifo", 0o600)
        for name in (*read, *Channel, "recorded"):
            os.close(os.open(f"{self.directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @contextmanager
    def opened(self) -> Iterator[Ends]:
        """The process's ends of its FIFOs, open as long as the context lasts. They have to be when `open` is called.

        Raises:
            OSError: they can't be opened.
        """
        with ExitStack() as stack:

            def end(path: str | Path, flags: int) -> int:
                fd = os.open(path, flags | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                return fd

            null = end(os.devnull, os.O_RDWR)
            if self.terminal:
                yield Ends(null, null, null)
                return
            # For reading too: there always is a reader, whatever becomes of the recorder.
            stdout = end(self.directory / "stdout.fifo", os.O_RDWR)
            enlarge(stdout)
            fifo = self.directory / "stderr.fifo"
            stderr = end(fifo, os.O_RDWR) if fifo.exists() else stdout
            fifo = self.directory / "stdin.fifo"
            stdin = end(fifo, os.O_RDONLY | os.O_NONBLOCK) if fifo.exists() else null  # there is no writer yet
            os.set_blocking(stdin, True)
            yield Ends(stdin, stdout, stderr)

    def look(self) -> None:
        """Learn what there is on disk. Blocks."""
        try:
            self.lengths = {channel: (self.directory / channel).stat().st_size for channel in Channel}
            with suppress(FileNotFoundError):  # it has none
                self.stdin_written = (self.directory / "stdin").stat().st_size
            self.complete = (self.directory / "recorded").read_bytes() == program.ENDED
        except OSError:  # it was not made in full, or is being removed
            self.complete = True

    async def open(self, *, new: bool) -> None:
        """Have it recorded, if it still is to be.

        Raises:
            UnavailableError: no recorder can be had.
        """
        if new:
            self.stdin_closed = False
        else:
            await trio.to_thread.run_sync(self.look, limiter=_THREADS)
            if self.complete:
                self._known.set()
                return
        connection = await self._recorder.connect()
        order = {"session": str(self.directory), "new": new, "terminal": self.terminal, "limit": self._limit}
        try:
            connection.send(json.dumps(order).encode())
            with trio.fail_after(_PATIENCE):
                packet = await _receive(connection)
        except (trio.TooSlowError, OSError) as error:
            connection.close()
            raise UnavailableError("output can't be recorded: the recorder does not answer") from error
        except BaseException:
            connection.close()
            raise
        if not packet:
            connection.close()
            raise UnavailableError("output can't be recorded: the recorder refuses to")
        self._connection = connection
        self._learn(json.loads(packet))

    async def follow(self) -> None:
        """Learn of what changes, until the output has ended. One task does, for all the others."""
        while not self.complete:
            if self._connection is None:
                try:
                    await self.open(new=False)
                except UnavailableError as error:
                    log.warning("output not followed", extra={"session": str(self.directory), "reason": str(error)})
                    await trio.sleep(_AGAIN)
            elif packet := await _receive(self._connection):
                self._learn(json.loads(packet))
                if self._untold:
                    self._tell_input()
            else:  # the recorder was killed: the next one goes on
                self.close()

    def give_up(self) -> None:
        """Wait for no more output: what has the channel open is not the process itself."""
        self.complete = True
        self._wake()

    async def wait_complete(self) -> None:
        """Wait until nothing more is waited for."""
        while not self.complete:
            await self._changed.wait()

    def close(self) -> None:
        """Learn of nothing more. It is recorded nevertheless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            trio.lowlevel.notify_closing(connection)
            connection.close()

    def tell(self, **order: object) -> bool:
        """Tell the recorder something; whether it could be done at once."""
        if self._connection is None:
            return False
        try:
            self._connection.send(json.dumps(order).encode())
        except OSError:
            return False
        return True

    async def read(self, channel: Channel, offset: int) -> Piece:
        """What was written from an offset on, or from the oldest byte that is kept; waits for it. Empty at the end.

        Raises:
            OutOfRangeError: there was never so much.
        """
        if offset > self.lengths[channel]:
            raise OutOfRangeError(f"{channel} has {self.lengths[channel]} bytes yet: it can't be read from {offset} on")
        while True:
            changed = self._changed
            if self.lengths[channel] > offset:
                piece = await trio.to_thread.run_sync(self._read, channel, offset, limiter=_THREADS)
                self._reaches(channel, piece.offset + len(piece.data))
                return piece
            if self.complete:
                await trio.lowlevel.checkpoint()
                return Piece(offset, b"")
            await changed.wait()

    async def write(self, offset: int, data: bytes, *, last: bool) -> None:
        """Accept input that begins at an offset; what was accepted before is not again. Waits while too much waits.

        Nothing is accepted once the process's stdin is closed.

        Raises:
            OutOfRangeError: something is missing before it.
        """
        await self._known.wait()
        async with self._writing:
            if offset > self.stdin_written:
                raise OutOfRangeError(
                    f"stdin has got {self.stdin_written} bytes yet: bytes from {offset} on come too early"
                )
            left = memoryview(data)[self.stdin_written - offset :]
            while left and not self.stdin_closed and not self._last:
                room = _INPUT - (self.stdin_written - self._taken)
                changed = self._changed
                if room <= 0:
                    await changed.wait()
                    continue
                count = min(room, len(left))
                # Not cut short: the size of the file is what was accepted.
                await trio.to_thread.run_sync(self._append, bytes(left[:count]), limiter=_THREADS)
                self.stdin_written += count
                left = left[count:]
                self._tell_input()
            if last and not left and not self.stdin_closed:
                self._last = True
                self._tell_input()
        await trio.lowlevel.checkpoint()

    def resize(self, size: TerminalSize) -> None:
        """Give its terminal another size."""
        if self.terminal:
            self.tell(size=[size.rows, size.columns])

    def _tell_input(self) -> None:
        self._untold = not self.tell(input=self.stdin_written, last=self._last)

    def _learn(self, state: dict[str, Any]) -> None:
        for channel in Channel:
            self._reaches(channel, int(state[channel]))
        self._taken = int(state["taken"])
        self.stdin_closed = bool(state["closed"])
        self.complete = self.complete or bool(state["ended"])
        self._known.set()
        self._wake()

    def _reaches(self, channel: Channel, length: int) -> None:
        self.lengths[channel] = max(self.lengths[channel], length)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _read(self, channel: Channel, offset: int) -> Piece:
        try:
            with open(self.directory / channel, "rb", buffering=0) as file:
                while True:
                    start = max(offset, _first(file.fileno()))
                    data = os.pread(file.fileno(), PIECE, start)
                    if _first(file.fileno()) <= start:  # else it was removed while it was read
                        return Piece(start, data)
        except FileNotFoundError:  # the sandbox is removed, and what it wrote with it
            return Piece(offset, b"")

    def _append(self, data: bytes) -> None:
        with open(self.directory / "stdin", "ab", buffering=0) as file:
            written = file.write(data)
            if written < len(data):
                file.truncate(file.tell() - written)
                raise GuestError("input can't be accepted: the disk is full")


async def _receive(connection: socket.socket) -> bytes:
    """The next packet; empty when the other end is gone."""
    while True:
        await trio.lowlevel.wait_readable(connection)
        try:
            return connection.recv(_PACKET)
        except BlockingIOError:
            continue
        except OSError:
            return b""


def _first(file: int) -> int:
    """The offset of the first byte that is kept."""
    try:
        return os.lseek(file, 0, os.SEEK_DATA)
    except OSError:  # ENXIO: there is none
        return 0
