"""Agents, one after the other, that kill themselves at one step of what their guest room does. A program of its own.

Each is a fork of this process, which has imported all that they need: a test has hundreds of them. A line of stdin is
the arguments of one, as JSON; its process id is a line of stdout, and so is its status when it has ended.

A step is a call that changes the machine, seen by an audit hook, or by a wrapper where Python has no audit event. In
the directory that the variable ARCBOX_FAULTS names,

    armed   says at which step to end, and is there as long as steps count; empty lets it live
    steps   gets a line for every step that was counted

A step is named by the function that makes it, its kind, and how many there were of that name before. A file that is
opened to be written anew is two steps: the second one leaves it empty.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import cattrs
import pyroute2
import trio._subprocess

import arcbox_agent.server
import arcbox_guest.network.dns_server
import arcbox_guest.sandboxes.oci.driver
from arcbox_agent.__main__ import main
from arcbox_guest import linux

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

T = TypeVar("T")

IMPORTED: Final = (
    cattrs,
    pyroute2,
    arcbox_agent.server,
    arcbox_guest.network.dns_server,
    arcbox_guest.sandboxes.oci.driver,
)
"""What agents import when they need it."""

setattr(arcbox_guest.sandboxes.oci.driver, "MANY_LAYERS", 2)  # noqa: B010  for mypy, a constant is not assigned to

_DIRECTORY: Final = Path(os.environ["ARCBOX_FAULTS"])
_ROOM: Final = "/arcbox_guest/"
_SANDBOXES: Final = tuple(f"{_ROOM}{package}/" for package in ("images", "network", "sandboxes"))
_EVENTS: Final = frozenset(
    {
        *("fcntl.ioctl", "os.chmod", "os.chown", "os.kill", "os.killpg", "os.link", "os.mkdir", "os.posix_spawn"),
        *("os.remove", "os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime"),
        *("socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto", "subprocess.Popen"),
    }
)
_counted: Final[Counter[str]] = Counter()
_LOOKS: Final = (
    "linux.check_executable",
    "linux.open_cached",
    "linux.open_in_root",
    "linux.setns",
    "linux.unshare",
    "links._find",
)
"""Functions that ask the kernel, or are about the calling thread only."""

_lock: Final = threading.Lock()
_busy: Final = threading.local()


def step(kind: str, finish: Callable[[], object] = lambda: None) -> None:
    """Count a step of the guest room, and end here if it is the one; `finish` it before then."""
    if getattr(_busy, "busy", False) or (where := _function_of_the_room()) in (None, *_LOOKS):
        return
    _busy.busy = True
    try:
        with _lock:
            try:
                fatal = (_DIRECTORY / "armed").read_text()
            except (FileNotFoundError, PermissionError):  # a thread as a sandbox's user only looks
                return
            name = f"{where} {kind}"
            _counted[name] += 1
            name = f"{name} {_counted[name]}"
            with (_DIRECTORY / "steps").open("a") as file:
                file.write(f"{name}\n")
            if name == fatal:
                with suppress(OSError):  # what cannot be opened is as it was
                    finish()
                os.kill(os.getpid(), signal.SIGKILL)
    finally:
        _busy.busy = False


def _function_of_the_room() -> str | None:
    """The function of the guest room that is about to do something, if it does it for sandboxes."""
    found = None
    frame: FrameType | None = sys._getframe(2)  # how an audit hook learns who calls
    while frame is not None:
        path = frame.f_code.co_filename
        if found is None and _ROOM in path:
            found = f"{Path(path).stem}.{frame.f_code.co_name}"
        if any(package in path for package in _SANDBOXES):
            return found
        frame = frame.f_back
    return None


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: see sys.addaudithook."""
    if event in _EVENTS:
        step(event)
    elif event == "open" and isinstance(flags := arguments[2], int) and flags & (os.O_WRONLY | os.O_RDWR):
        step("open")
        path = arguments[0]
        # A name in an open directory, which the event does not have, can't be opened here; nor a descriptor.
        if flags & (os.O_CREAT | os.O_TRUNC) and not isinstance(path, int) and os.fspath(path)[:1] in ("/", b"/"):
            step("create", lambda: os.open(path, flags & ~os.O_EXCL, 0o600))


def before(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is a step."""

    def counted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  whatever the function takes
        step(function.__name__)
        return function(*arguments, **options)

    return counted


def between(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function before and after which there is a step: what it sets going may be faster than the next one."""

    def counted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  whatever the function takes
        step(function.__name__)
        result = function(*arguments, **options)
        step(f"after {function.__name__}")
        return result

    return counted


def around(function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """The same as `between`, of an asynchronous function."""

    async def counted(*arguments: Any, **options: Any) -> T:  # noqa: ANN401  whatever the function takes
        step(function.__name__)
        result = await function(*arguments, **options)
        step(f"after {function.__name__}")
        return result

    return counted


def instrument() -> None:
    """See the steps from now on."""
    sys.addaudithook(hook)
    os.mkfifo = before(os.mkfifo)
    os.write = between(os.write)
    signal.pidfd_send_signal = before(signal.pidfd_send_signal)
    setattr(socket.socket, "send", before(socket.socket.send))  # noqa: B010  for mypy, methods are not assigned to
    opening = trio._subprocess._open_process  # which run_process calls, in no thread yet
    setattr(trio._subprocess, opening.__name__, around(opening))
    linux.check_result = before(linux.check_result)  # each system call that Python has no function for has been made


def be_agent(order: dict[str, Any]) -> None:
    """Become an agent: in a fork."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target in (1, 2):
        os.dup2(log, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv[1:] = order["arguments"]
    instrument()
    os._exit(main())


if __name__ == "__main__":
    for line in iter(sys.stdin.readline, ""):
        agent = os.fork()
        if not agent:
            be_agent(json.loads(line))
        print(agent, flush=True)  # noqa: T201  the protocol
        print(os.waitpid(agent, 0)[1], flush=True)  # noqa: T201  the protocol
