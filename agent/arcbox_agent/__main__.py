"""The command line: `arcbox-agent serve`, `config`, `check`, `rootfs`, `image`."""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("agent")

_FAILED = 1
_MISUSED = 2

_OBJECTS_BETWEEN_COLLECTIONS = 8_000
"""While modules are loaded. A few there have to be: attrs makes each class twice, and one of the two is garbage."""

_FILE_HELP = (
    "settings in TOML; without this option, the file that the environment variable ARCBOX_AGENT_CONFIG names, else"
    " /etc/arcbox/agent.toml if it is there, else built-in defaults"
)


def main() -> int:
    """Be `arcbox-agent`; returns the exit status."""
    if os.getpid() == 1 and _is_init(sys.argv[1:]):
        from arcbox_agent import pid1  # noqa: PLC0415  not for anybody else

        pid1.run(sys.argv[1:])
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 50, 100)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the server takes over: no traceback of half an import
    _open_standard_streams()
    return run(sys.argv[1:])


def _is_init(arguments: Sequence[str]) -> bool:
    """Whether PID 1 shall keep an agent running: unless it is a command of a container that is over soon.

    A kernel gives its init what it does not know itself of its command line.
    """
    return not arguments or arguments[0] not in ("config", "check", "rootfs", "--version", "--help", "-h")


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status.

    Raises:
        SystemExit: help was asked for, or is needed.
    """
    try:
        try:
            options = _parser().parse_args(arguments)
            command: Callable[[argparse.Namespace], int] = options.command
            return command(options)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except OSError as error:
        return _complain(str(error), _FAILED)


def _complain(why: str, status: int) -> int:
    print(f"arcbox-agent: {why}", file=sys.stderr)  # noqa: T201  the way of commands
    return status


def _open_standard_streams() -> None:
    """See that 0, 1 and 2 are open: a socket that got one of them would be written to by whoever prints."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  for as long as we live
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_MISUSED, f"arcbox-agent: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from arcbox_protocol import __version__  # noqa: PLC0415  only this option waits for it

        print(f"arcbox-agent {__version__}")  # noqa: T201  the way of commands
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="arcbox-agent",
        description="The ArcBox guest agent: runs in a Linux guest and serves its host over vsock.",
        epilog="Each command explains itself: arcbox-agent COMMAND --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_config(commands)
    _add_check(commands)
    _add_rootfs(commands)
    _add_image(commands)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001  argparse has no public name for what add_subparsers returns


def _add_serve(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve the host, until SIGTERM",
        description="Serve the host, until SIGTERM or Ctrl-C. Requests that run may finish then; a second signal ends"
        " them.",
        epilog="Sockets that systemd passes (LISTEN_FDS) stand in for the default address, and come beside any other.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=_FILE_HELP)
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        default=[],
        help="an address to listen on, in place of those of the settings: vsock:PORT (on any CID of this guest),"
        " vsock:CID:PORT or unix:PATH; may be given more than once",
    )
    parser.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from arcbox_agent import logs  # noqa: PLC0415  not for --help
    from arcbox_agent.settings import SettingsError, load  # noqa: PLC0415

    try:
        loaded = load(options.config, options.listen)
    except SettingsError as error:
        return _complain(str(error), _MISUSED)
    logs.configure(loaded.settings.log)
    from arcbox_agent.passed_listeners import PassedListenerError  # noqa: PLC0415  trio: a tenth of a second
    from arcbox_agent.server import serve  # noqa: PLC0415

    try:
        return serve(loaded)
    except PassedListenerError as error:
        return _complain(str(error), _FAILED)
    except Exception:
        log.exception("the agent can't go on")
        return _FAILED


def _add_config(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "config",
        help="show the settings and where each comes from",
        description="Show the settings that `serve` would use, and where each comes from.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=_FILE_HELP)
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.set_defaults(command=_config)


def _config(options: argparse.Namespace) -> int:
    from arcbox_agent._settings_report import for_people, for_programs  # noqa: PLC0415
    from arcbox_agent.settings import SettingsError, load  # noqa: PLC0415  not for --help

    try:
        loaded = load(options.config)
    except SettingsError as error:
        return _complain(str(error), _MISUSED)
    print(for_programs(loaded) if options.json else for_people(loaded))  # noqa: T201  the way of commands
    return 0


def _add_check(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "check",
        help="show what this machine offers",
        description="Show what this machine offers: vsock, cgroups, file systems, container tools and more. Nothing is"
        " changed.",
        epilog="The exit status is 0 unless something is missing that the agent itself can't do without; with --image,"
        " unless anything is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=_FILE_HELP)
    parser.add_argument(
        "--image", metavar="ROOT", help="look at the root directory of a guest image that is being built, in its place"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415  not for --help

    from arcbox_agent._machine import Machine, machine_in  # noqa: PLC0415  not for --help
    from arcbox_agent.check import examine, for_people, for_programs  # noqa: PLC0415
    from arcbox_agent.image_check import examine_image  # noqa: PLC0415
    from arcbox_agent.settings import DEFAULT_FILE, SettingsError, load  # noqa: PLC0415

    root = Path(options.image or "/")
    try:
        settings = load(options.config, default_file=root / DEFAULT_FILE.relative_to("/")).settings
    except SettingsError as error:
        return _complain(str(error), _MISUSED)
    if options.image and not root.is_dir():
        return _complain(f"{root} is no directory", _MISUSED)
    findings = examine_image(machine_in(root, settings)) if options.image else examine(Machine(settings=settings))
    print(for_programs(findings) if options.json else for_people(findings))  # noqa: T201  the way of commands
    return _FAILED if any(finding.prevents_serving for finding in findings) else 0


def _add_rootfs(commands: _Commands[_Parser]) -> None:
    parser = commands.add_parser(
        "rootfs", help="make a root file system for sandboxes", description="Root file systems for sandboxes."
    )
    build = parser.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser(
        "build",
        help="make a small one, of busybox",
        description="Make a small root file system of busybox, for sandboxes that are given no other.",
        allow_abbrev=False,
    )
    build.add_argument("--busybox", metavar="FILE", help="the program, linked statically; default: the one in the path")
    build.add_argument(
        "target", metavar="TARGET", help="a directory, or an image that ends with .ext4, .squashfs or .erofs"
    )
    build.set_defaults(command=_build_rootfs)


def _build_rootfs(options: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415  not for --help

    from arcbox_guest.errors import GuestError  # noqa: PLC0415
    from arcbox_guest.sandboxes.busybox import build  # noqa: PLC0415

    try:
        build(Path(options.target), Path(options.busybox) if options.busybox else None)
    except GuestError as error:
        return _complain(str(error), _FAILED)
    return 0


def _add_image(commands: _Commands[_Parser]) -> None:
    images = commands.add_parser(
        "image", help="show, pull and remove OCI images", description="The OCI images that sandboxes are made from."
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, what in (("ls", "show the images"), ("pull", "have an image"), ("rm", "remove an image")):
        parser = images.add_parser(name, help=what, description=f"{what.capitalize()}.", allow_abbrev=False)
        parser.add_argument("--config", metavar="FILE", help=_FILE_HELP)
        parser.set_defaults(command=_image, action=name)
        if name == "pull":
            parser.add_argument(
                "image",
                metavar="IMAGE",
                help="as `docker pull` takes it, or oci:, docker-archive: … as skopeo does",
            )
        if name == "rm":
            parser.add_argument("image", metavar="IMAGE", help="its name, or the beginning of its digest")


def _image(options: argparse.Namespace) -> int:
    from arcbox_agent import image_command  # noqa: PLC0415  not for --help
    from arcbox_agent.settings import SettingsError, load  # noqa: PLC0415
    from arcbox_guest.errors import GuestError  # noqa: PLC0415

    try:
        settings = load(options.config).settings
        match options.action:
            case "ls":
                print(image_command.list_images(settings))  # noqa: T201  the way of commands
            case "pull":
                print(image_command.pull_image(settings, options.image))  # noqa: T201  the way of commands
            case "rm":
                image_command.remove_image(settings, options.image)
    except SettingsError as error:
        return _complain(str(error), _MISUSED)
    except GuestError as error:
        return _complain(str(error), _FAILED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
