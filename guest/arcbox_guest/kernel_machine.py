"""What only the init process may do to a machine, or the agent that it keeps running. No trio here: PID 1 is small."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from arcbox_guest import linux
from arcbox_guest.errors import GuestError

SUPERVISED: Final = "ARCBOX_SUPERVISED"
"""The environment variable by which PID 1 tells its agent that the machine is theirs."""

_RB_POWER_OFF: Final = 0x4321_FEDC
_RB_AUTOBOOT: Final = 0x0123_4567
_RB_DISABLE_CAD: Final = 0
"""reboot(2); the C library adds the magic numbers."""

_PF_KTHREAD: Final = 0x0020_0000
"""The kernel's flag for its own threads, in the ninth field of /proc/PID/stat."""


def owns_machine() -> bool:
    """Whether this process is PID 1, or the agent that our own PID 1 runs."""
    return os.getpid() == 1 or (os.getppid() == 1 and os.environ.get(SUPERVISED) == "1")


class KernelMachine:
    """The machine, or the container, whose init this process is, or is run by; any other process is refused."""

    def kill_all(self, signal_number: int) -> None:
        """Send a signal to all processes but the caller and PID 1."""
        _require_ownership()
        with suppress(ProcessLookupError):  # there is nobody else
            os.kill(-1, signal_number)

    def has_processes(self) -> bool:
        """Whether any process but the caller and PID 1 runs."""
        _require_ownership()
        others = (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal())
        return any(_runs(entry) for entry in others if int(entry.name) not in (1, os.getpid()))

    def sync(self) -> None:
        """Write all file systems to their disks; blocks."""
        _require_ownership()
        os.sync()

    def remount_read_only(self) -> None:
        """Have all disks clean, for the next boot to replay no journal. What is still written to stays as it is."""
        _require_ownership()
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            source, target, *_ = line.split(" ")
            if source.startswith("/dev/"):
                with suppress(OSError):
                    linux.mount(source, target, None, linux.MS_REMOUNT | linux.MS_RDONLY)

    def power_off(self, *, restart: bool = False) -> None:
        """Cut the power, or restart the machine. PID 1 does so at once; its agent tells it to, by SIGTERM."""
        _require_ownership()
        if os.getpid() != 1:
            os.kill(1, signal.SIGTERM)
            return
        _reboot(_RB_AUTOBOOT if restart else _RB_POWER_OFF)

    def trap_ctrl_alt_delete(self) -> None:
        """Have those keys send SIGINT to PID 1: until it asks for that, the kernel restarts with nothing synced.

        Raises:
            OSError: in a container, which has no keyboard.
        """
        _require_ownership()
        _reboot(_RB_DISABLE_CAD)


def _reboot(command: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.reboot(ctypes.c_int(command)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"reboot(2): {os.strerror(code)}")


def _require_ownership() -> None:
    if not owns_machine():
        raise GuestError("only PID 1 may do this to a machine")


def _runs(process: Path) -> bool:
    try:
        return is_running_program((process / "stat").read_bytes())
    except OSError:  # it ended
        return False


def is_running_program(stat: bytes) -> bool:
    """Whether /proc/PID/stat shows a program that runs: neither a zombie nor a thread of the kernel's.

    The name of a program, in parentheses, may hold parentheses and spaces itself: what follows the last one
    counts.
    """
    state, *numbers = stat[stat.rindex(b")") + 2 :].split()
    flags = int(numbers[5])
    return state not in (b"Z", b"X") and not flags & _PF_KTHREAD
