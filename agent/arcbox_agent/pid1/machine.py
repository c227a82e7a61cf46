"""What else a machine needs before the agent runs: modules, loopback, a name, limits, a few files."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arcbox_agent.pid1.console import say

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULE_LISTS: Final = ("/etc/modules-load.d", "/run/modules-load.d", "/usr/lib/modules-load.d")
"""modules-load.d(5)."""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
"""netdevice(7)."""

_IFREQ: Final = struct.Struct("16sh22x")

_OPEN_FILES: Final = 524_288
"""RLIMIT_NOFILE, as systemd has it: the kernel's own 4,096 are few for connections and containers."""

_DHCP_PARAMETER: Final = "arcbox.dhcp="
"""Of the kernel command line: the interface that a DHCP client shall run for."""

_DHCP_CLIENTS: Final = (("udhcpc", "-f", "-i"), ("dhcpcd", "-B"), ("dhclient", "-d"))
"""Commands that stay in the foreground; the interface comes last."""

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def set_up() -> None:
    """Do all of it; what fails is said on the console, and is left."""
    os.environ.setdefault("PATH", DEFAULT_PATH)
    for name, step in _STEPS:
        try:
            step()
        except (OSError, ValueError) as error:
            say(f"{name} can't be set up: {error}")


def dhcp_command() -> list[str] | None:
    """The DHCP client that the kernel command line asks for; None if it asks for none, or there is none."""
    with suppress(OSError):
        for word in Path("/proc/cmdline").read_text().split():
            if word.startswith(_DHCP_PARAMETER):
                interface = word.removeprefix(_DHCP_PARAMETER)
                for name, *options in _DHCP_CLIENTS:
                    if found := shutil.which(name):
                        return [found, *options, interface]
                say(f"no DHCP client for {interface}: neither udhcpc, dhcpcd nor dhclient is installed")
    return None


def _load_modules() -> None:
    listed = dict.fromkeys(name for directory in _MODULE_LISTS for name in _names(Path(directory)))
    modprobe = shutil.which("modprobe")
    if not listed or modprobe is None:
        return
    # One that the kernel has built in, or does not have at all, is no reason to go without the others.
    pid = os.posix_spawn(modprobe, [modprobe, "--all", "--quiet", *listed], os.environ)
    os.waitpid(pid, 0)


def _names(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    lines = (line.strip() for path in sorted(directory.glob("*.conf")) for line in path.read_text().splitlines())
    return [line for line in lines if line and line[0] not in "#;"]


def _raise_limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, _OPEN_FILES))


def _start_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = _IFREQ.unpack(ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _set_hostname() -> None:
    if socket.gethostname() in ("", "(none)", "localhost"):
        path = Path("/etc/hostname")
        name = path.read_text().strip() if path.exists() else ""
        socket.sethostname(name or "arcbox")


def _write_hosts() -> None:
    path = Path("/etc/hosts")
    if not path.exists():
        path.write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {socket.gethostname()}\n")


def _write_resolv_conf() -> None:
    """From what the kernel has learned by its own DHCP (`ip=dhcp`), if anything."""
    path, learned = Path("/etc/resolv.conf"), Path("/proc/net/pnp")
    if not path.exists() and learned.exists():
        lines = [line for line in learned.read_text().splitlines() if line.startswith(("nameserver", "domain"))]
        path.write_text("".join(f"{line}\n" for line in lines))


_STEPS: Final[tuple[tuple[str, Callable[[], None]], ...]] = (
    ("the limit of open files", _raise_limits),
    ("kernel modules", _load_modules),
    ("loopback", _start_loopback),
    ("the host name", _set_hostname),
    ("/etc/hosts", _write_hosts),
    ("/etc/resolv.conf", _write_resolv_conf),
)
