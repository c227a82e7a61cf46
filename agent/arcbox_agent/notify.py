"""What the agent tells systemd: sd_notify(3), and the beat of its watchdog."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import trio
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log = logging.getLogger(__name__)


@frozen
class Notifier:
    """The service manager that started this process. Failures to notify it are only logged."""

    _address: str | None
    """Of its datagram socket; None when there is none to tell."""

    watchdog_interval: float | None = None
    """Seconds between two beats; None when it expects none."""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """What NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say; sd_watchdog_enabled(3) for the latter.

        They are taken out of the environment: no child shall tell things in our name.
        """
        address = environ.pop("NOTIFY_SOCKET", None) or None
        microseconds = environ.pop("WATCHDOG_USEC", "")
        meant = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if not (meant and microseconds.isdecimal() and int(microseconds)):
            return cls(address)
        return cls(address, int(microseconds) / 1e6 / 2)

    def tell(self, **assignments: str) -> None:
        """Send variables of sd_notify(3), such as `READY="1"`, in one datagram."""
        if self._address is None:
            return
        text = "\n".join(f"{name}={_one_line(value)}" for name, value in assignments.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError as error:
            log.warning("the service manager can't be told", extra={"said": text, "error": str(error)})

    async def beat(self) -> None:
        """Tell the watchdog, for as long as the event loop lives, that it does."""
        if self.watchdog_interval is None:
            return
        while True:
            self.tell(WATCHDOG="1")
            await trio.sleep(self.watchdog_interval)


def _one_line(value: str) -> str:
    """Without what would begin another variable, and without NUL, for which systemd drops the whole datagram."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())
