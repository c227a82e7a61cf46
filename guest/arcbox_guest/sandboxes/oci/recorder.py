"""A program: keeps what detached processes write in files, and feeds them what they are to read. It outlives the agent.

    python recorder.py LISTENER

LISTENER is an open socket of the type SOCK_SEQPACKET that listens. The packets are JSON; `recording` is the other end.

conmon's own log was measured, and does not do: it begins anew at its limit, so that what went before and the offset of
what follows are lost, it needs some 45 bytes and a write for each line, and has no place for input that is addressed by
offset. The exit status is the business of the process's parent: see `starter`.

- A byte of output lies in its file at the offset that it has in its stream. Where the file has grown beyond its limit,
  the oldest part becomes a hole, which takes no space: fallocate(2), FALLOC_FL_PUNCH_HOLE.
- splice(2) takes bytes out of a FIFO as it puts them into the file. Who kills this program loses none: the process has
  its FIFOs open for reading too, so it gets no SIGPIPE, and the next recorder goes on at the end of the file.
- Input is appended to a file by the agent, so its size is what was accepted, whenever that is killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH: Final = 1024 * 1024
"""Bytes that are moved before others have their turn."""

_PACKET: Final = 64 * 1024
"""Bytes of a packet, at most."""

_BLOCK: Final = 4096
"""Holes begin and end at a multiple of so many bytes: file systems keep whole blocks."""

_PUNCH: Final = 0x1 | 0x2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_AGAIN: Final = 1.0
"""Seconds after which it is tried again to write to a disk that was full. The process waits meanwhile."""

_UNUSED: Final = 60.0
"""Seconds in which the agent that started this program must have connected."""

ENDED: Final = b"ended\n"
"""What the file `recorded` of a session has when there is no more output to come."""


class Loop:
    """Calls whoever waits for a file."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self._later: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, call)
        else:
            self._selector.register(fd, events, call)

    def forget(self, fd: int) -> None:
        with suppress(KeyError):
            self._selector.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, call))

    def once(self, timeout: float | None) -> None:
        """Wait for something, and have it done."""
        if self._later:
            timeout = max(0.0, self._later[0][0] - time.monotonic())
        for key, events in self._selector.select(timeout):
            if key.fd in self._selector.get_map():  # an earlier one may have closed it
                key.data(events)
        while self._later and self._later[0][0] <= time.monotonic():
            self._later.pop(0)[1]()


class Output:
    """What a process writes to one FIFO, or to its terminal."""

    def __init__(self, session: Session, source: int, path: str, *, terminal: bool = False) -> None:
        self._session, self._source, self._terminal = session, source, terminal
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.length = os.fstat(self._file).st_size
        self._hole = 0
        self._watch()

    def _watch(self) -> None:
        self._session.loop.watch(self._source, selectors.EVENT_READ, self.pump)

    def pump(self, _events: int = 0) -> None:
        """Move what is there into the file."""
        loop = self._session.loop
        try:
            count = self._move()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _FULL:
                loop.forget(self._source)
                loop.later(_FULL_AGAIN, self._again)
                return
            count = 0  # EIO: nobody has the terminal open any more
        if count:
            self.length += count
            self._bound()
        else:
            self.close()
        self._session.changed()

    def close(self) -> None:
        self._session.loop.forget(self._source)
        os.close(self._source)
        os.close(self._file)
        self._session.outputs.remove(self)

    def _again(self) -> None:
        if self in self._session.outputs:
            self._watch()

    def _move(self) -> int:
        if not self._terminal:
            return os.splice(self._source, self._file, _BATCH, offset_dst=self.length)
        data = os.read(self._source, _BATCH)
        os.pwrite(self._file, data, self.length)
        return len(data)

    def _bound(self) -> None:
        limit = self._session.limit
        if self.length - self._hole > limit + limit // 8:
            self._hole = (self.length - limit) // _BLOCK * _BLOCK
            punch(self._file, self._hole)


class Input:
    """What a process reads from a FIFO, or from its terminal: as much of the file as it takes."""

    def __init__(self, session: Session, sink: int, path: str) -> None:
        self._session, self._sink = session, sink
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.taken = 0
        self._hole = 0
        self._last: int | None = None
        """Where the input ends, once that is known."""

    def end_at(self, length: int) -> None:
        self._last = length

    def pump(self, _events: int = 0) -> None:
        """Give it what there is, as long as it takes it."""
        loop = self._session.loop
        try:
            while data := os.pread(self._file, _PACKET, self.taken):
                self.taken += os.write(self._sink, data)
        except BlockingIOError:
            loop.watch(self._sink, selectors.EVENT_WRITE, self.pump)
        except OSError:  # EPIPE, EIO: nobody reads it any more
            self.close()
        else:
            loop.forget(self._sink)
            if self._last is not None and self.taken >= self._last:
                self.close()
        self._session.changed()

    def close(self) -> None:
        self._session.loop.forget(self._sink)
        os.close(self._sink)
        os.close(self._file)
        self._session.input = None


class Session:
    """The files of one detached process, all in one directory."""

    def __init__(self, loop: Loop, directory: str, order: dict[str, Any]) -> None:
        self.loop, self.directory = loop, directory
        self.limit = int(order["limit"])
        self.outputs: list[Output] = []
        self.input: Input | None = None
        self.followers: list[Follower] = []
        self._console: socket.socket | None = None
        self._master = -1
        self._taken = 0
        self._lengths: dict[str, int] = {}
        with open(self._path("recorded"), "rb") as file:
            recorded = file.read() == ENDED
        if not recorded:
            self._open(order)
        if not self.open:
            self._end()

    @property
    def open(self) -> bool:
        """Whether there may be more output."""
        return bool(self.outputs or self._console)

    def state(self) -> dict[str, Any]:
        if self.input is not None:
            self._taken = self.input.taken
        return {
            "stdout": self._length("stdout"),
            "stderr": self._length("stderr"),
            "taken": self._taken,
            "closed": self.input is None and self._console is None,
            "ended": not self.open,
        }

    def changed(self) -> None:
        if not self.open:
            self._end()
        for follower in self.followers:
            follower.tell()

    def obey(self, order: dict[str, Any]) -> None:
        """Do what a follower asks for."""
        if self.input is not None and "input" in order:
            if order.get("last"):
                self.input.end_at(int(order["input"]))
            self.input.pump()
        if self._master >= 0 and "size" in order:
            rows, columns = order["size"]
            with suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _open(self, order: dict[str, Any]) -> None:
        if order["terminal"]:
            if order["new"]:
                self._await_terminal()
            return
        for name in ("stdout", "stderr"):
            with suppress(FileNotFoundError):
                fifo = os.open(self._path(f"{name}.fifo"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self.outputs.append(Output(self, fifo, self._path(name)))
        if order["new"]:
            with suppress(FileNotFoundError):
                fifo = os.open(self._path("stdin.fifo"), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self.input = Input(self, fifo, self._path("stdin"))
        for output in list(self.outputs):
            output.pump()  # whose end may be there already: that wakes nobody

    def _await_terminal(self) -> None:
        self._console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._console.bind(f"/proc/self/fd/{opened}/console")  # an address has no room for a long path
        os.close(opened)
        self._console.listen(1)
        self.loop.watch(self._console.fileno(), selectors.EVENT_READ, self._take_terminal)

    def _take_terminal(self, _events: int) -> None:
        if self._console is None:
            return
        connection, _ = self._console.accept()
        with connection:
            connection.settimeout(1.0)  # the runtime sends it right away
            _, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
        self._close_console()
        if descriptors:
            self._master = descriptors[0]
            os.set_blocking(self._master, False)
            self.outputs.append(Output(self, os.dup(self._master), self._path("stdout"), terminal=True))
            self.input = Input(self, os.dup(self._master), self._path("stdin"))
            self.input.pump()
        self.changed()

    def give_up(self) -> None:
        """Wait no more for a terminal: the runtime has ended without one."""
        if self._console is not None:
            self._close_console()
            self.changed()

    def _close_console(self) -> None:
        if self._console is not None:
            self.loop.forget(self._console.fileno())
            self._console.close()
            self._console = None

    def _length(self, name: str) -> int:
        with suppress(OSError):  # it is being removed
            self._lengths[name] = os.stat(self._path(name)).st_size
        return self._lengths.get(name, 0)

    def _end(self) -> None:
        if self.input is not None:
            self._taken = self.input.taken
            self.input.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        # Written into a file that is there: whoever removes the directory meanwhile finds nothing new in it.
        with suppress(OSError), open(self._path("recorded"), "r+b") as file:
            file.write(ENDED)

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"


class Follower:
    """A connection of an agent's, that is told of a session's state after every change."""

    def __init__(self, recorder: Recorder, connection: socket.socket) -> None:
        self._recorder, self._connection = recorder, connection
        self.session: Session | None = None
        self._behind = False
        connection.setblocking(False)
        # Room for a few packets: who is slow is told less often, and then of all that has changed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BLOCK)
        self._watch()

    def tell(self) -> None:
        if self.session is None:
            return
        try:
            self._connection.send(json.dumps(self.session.state()).encode())
            behind = False
        except BlockingIOError:
            behind = True
        except OSError:
            return  # it is gone, which is seen when it is read from
        if behind != self._behind:
            self._behind = behind
            self._watch()

    def _watch(self) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._behind else 0)
        self._recorder.loop.watch(self._connection.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            try:
                packet = self._connection.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._close()
                return
            try:
                self._obey(json.loads(packet))
            except OSError as error:  # of its session, whose directory is being removed, say
                sys.stderr.write(f"{packet!r}: {error}\n")
                self._close()
        elif self._behind:
            self.tell()

    def _obey(self, order: dict[str, Any]) -> None:
        if "session" in order:
            self.session = self._recorder.session(order)
            self.session.followers.append(self)
            self.tell()
        elif self.session is not None and order.get("unstarted"):
            self.session.give_up()
        elif self.session is not None:
            self.session.obey(order)

    def _close(self) -> None:
        self._recorder.loop.forget(self._connection.fileno())
        self._connection.close()
        self._recorder.followers.remove(self)
        if self.session is not None:
            self.session.followers.remove(self)


class Recorder:
    """All sessions that are recorded, and all connections."""

    def __init__(self, listener: socket.socket) -> None:
        self.loop = Loop()
        self.followers: list[Follower] = []
        self._sessions: dict[str, Session] = {}
        self._listener = listener
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), selectors.EVENT_READ, self._accept)

    def session(self, order: dict[str, Any]) -> Session:
        """The session of a directory: the one that is there, or a new one."""
        directory = order["session"]
        found = self._sessions.get(directory)
        if found is None or order["new"]:
            found = self._sessions[directory] = Session(self.loop, directory, order)
        return found

    def run(self) -> None:
        """Until there is nothing to record, and nobody who might say what."""
        deadline = time.monotonic() + _UNUSED
        while not self.followers and time.monotonic() < deadline:
            self.loop.once(_UNUSED)
        while self.followers or self._sessions:
            self.loop.once(None)
            self._sessions = {
                path: session for path, session in self._sessions.items() if session.open or session.followers
            }

    def _accept(self, _events: int) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            self.followers.append(Follower(self, connection))


def punch(file: int, length: int) -> None:
    """Make the beginning of a file a hole. Where the file system can't, it stays."""
    ctypes.CDLL(None).fallocate(file, _PUNCH, ctypes.c_long(0), ctypes.c_long(length))


if __name__ == "__main__":
    Recorder(socket.socket(fileno=int(sys.argv[1]))).run()
