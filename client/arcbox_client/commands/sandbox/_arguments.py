"""What people write for labels, variables, sizes, durations and mounts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Literal, TypedDict, TypeVar

import click

from arcbox_client._sandbox_requests import Mount

if TYPE_CHECKING:
    from collections.abc import Callable

_CommandT = TypeVar("_CommandT", bound="Callable[..., object]")

_LARGEST = 2**32 - 1

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MEBIBYTES: Final = {"m": 1, "g": 1024, "t": 1024 * 1024}


class Duration(click.ParamType[int]):
    """Whole seconds, or with a unit: 90, 90s, 15m, 2h, 1d."""

    name = "duration"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+)([smhd]?)", str(value).strip())
        seconds = int(match[1]) * _SECONDS[match[2] or "s"] if match else -1
        if not 0 <= seconds <= _LARGEST:
            self.fail(f"{value!r} is no duration: write 90, 90s, 15m, 2h or 1d", param, ctx)
        return seconds


class Mebibytes(click.ParamType[int]):
    """MiB, or with a unit: 512, 512m, 512MiB, 2g."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+)\s*(?:([mgt])(?:i?b)?)?", str(value).strip().lower())
        size = int(match[1]) * _MEBIBYTES[match[2] or "m"] if match else -1
        if not 0 <= size <= 2**64 - 1:
            self.fail(f"{value!r} is no size: write 512 (MiB), 512m or 2g", param, ctx)
        return size


class KeyValue(click.ParamType[tuple[str, str]]):
    """A name and a value: NAME=VALUE."""

    name = "name=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key:
            self.fail(f"{value!r} has no name: write NAME=VALUE", param, ctx)
        return key, text if equals else self.without_value(key, param, ctx)

    def without_value(self, key: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """What a name that stands alone means."""
        return self.fail(f"{key!r} has no value: write {key}=VALUE", param, ctx)


class Variable(KeyValue):
    """An environment variable; a name alone takes the value that it has here."""

    def without_value(self, key: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if key not in os.environ:
            self.fail(f"{key!r} has no value here: write {key}=VALUE", param, ctx)
        return os.environ[key]


class BindMount(click.ParamType[Mount]):
    """SOURCE:TARGET, with :ro after it for a read-only one."""

    name = "source:target[:ro]"

    def convert(self, value: str | Mount, param: click.Parameter | None, ctx: click.Context | None) -> Mount:
        if isinstance(value, Mount):
            return value
        source, target, mode, *rest = [*value.split(":"), "", ""][: max(3, value.count(":") + 1)]
        if not source.startswith("/") or not target.startswith("/") or mode not in {"", "rw", "ro"} or rest:
            self.fail(f"{value!r} is no mount: write /source:/target or /source:/target:ro", param, ctx)
        return Mount(source=source, target=target, readonly=mode == "ro")


Protocol = Literal["tcp", "udp"]


class SandboxPort(click.ParamType[tuple[int, Protocol]]):
    """A port, and after a slash its protocol: 80, 53/udp."""

    name = "port"

    def convert(
        self, value: str | tuple[int, Protocol], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, Protocol]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,5})(?:/(tcp|udp))?", value.lower())
        number = int(match[1]) if match else 0
        if not match or not 0 < number < 65536:
            self.fail(f"{value!r} is no port: write 80 or 53/udp", param, ctx)
        return number, "udp" if match[2] == "udp" else "tcp"


def command_line(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """What stands after the id: a command and its arguments, and a -- before them if one likes.

    Raises:
        click.UsageError: there is no command, or an option in its place.
    """
    first, *rest = value
    if first == "--":
        value = tuple(rest)
    elif first.startswith("-"):
        raise click.UsageError(f"options such as {first} stand before the id of the sandbox", ctx)
    if not value:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


class ProcessOptions(TypedDict):
    """What `process_options` gives to a command, but for what only some have."""

    env: tuple[tuple[str, str], ...]
    workdir: str
    user: str


class CommandOptions(ProcessOptions):
    """What `command_options` gives to a command."""

    kill_after: int


def process_options(command: _CommandT) -> _CommandT:
    """Give a command what can be said of a process besides its arguments."""
    options = (
        click.option("-e", "--env", type=Variable(), multiple=True, help="Set a variable; NAME alone: as it is here."),
        click.option("-w", "--workdir", default="", metavar="DIRECTORY", help="Where it runs."),
        click.option("-u", "--user", default="", metavar="USER", help="A name or uid[:gid] of the sandbox's own."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def command_options(command: _CommandT) -> _CommandT:
    """Give a command all that can be said of a command that it runs: the process's options, and when to kill it."""
    kill_after = click.option("--kill-after", type=Duration(), default=0, help="Kill it if it runs so long: 90s, 2h.")
    return process_options(kill_after(command))
