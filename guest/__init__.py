"""The machine: what requests are done to. Plain attrs types in, plain attrs types out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from guest.clock import ClockFollower
    from guest.disks import Disks
    from guest.files import Files
    from guest.power import Power
    from guest.sandboxes.manager import SandboxManager
    from guest.system import System


@frozen(kw_only=True)
class Guest:
    """The services of one guest. Built once, in `agent`, and passed to every command."""

    clock: ClockFollower
    disks: Disks
    files: Files
    power: Power
    sandboxes: SandboxManager
    system: System
