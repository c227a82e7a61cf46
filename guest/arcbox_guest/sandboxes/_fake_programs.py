"""What the processes of the fake driver do: a few well-known programs and shell scripts, as far as tests need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from arcbox_guest.sandboxes.model import SIGNALLED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from arcbox_guest.sandboxes.model import TerminalSize
    from arcbox_guest.sandboxes.testing import FakeProcess

SIGTERM: Final = 15
SIGKILL: Final = 9

PIECE: Final = 65_536
"""Bytes that are written at once, and that wait for someone to read them: a pipe's."""


class Program:
    """Waits for SIGTERM, as `sleep` does. Others say what else they do, and when."""

    reads: bool = False
    """Whether it reads its stdin."""

    def started(self, process: FakeProcess) -> None:
        """The beginning."""

    def stdin(self, process: FakeProcess, data: bytes) -> None:
        """Input came; empty at its end."""

    def drained(self, process: FakeProcess) -> None:
        """All output so far was read."""

    def resized(self, process: FakeProcess, size: TerminalSize) -> None:
        """Its terminal has another size."""

    def terminated(self, process: FakeProcess) -> None:
        """SIGTERM came."""
        process.exit(SIGNALLED + SIGTERM)


@frozen
class Say(Program):
    """Writes something, and ends."""

    text: Callable[[FakeProcess], str] = lambda _process: ""
    exit_code: int = 0
    errors: str = ""
    runs: bool = True
    """Whether it could be executed."""

    def started(self, process: FakeProcess) -> None:
        process.failure = "" if self.runs else self.errors.strip()
        process.write(self.text(process).encode())
        process.write_error(self.errors.encode())
        process.exit(self.exit_code)


@frozen
class LeaveBehind(Program):
    """Ends, but for a child that stays."""

    text: str = ""
    exit_code: int = 0
    holds_output: bool = field(default=False, kw_only=True)
    """Whether the child has the output open."""

    def started(self, process: FakeProcess) -> None:
        process.write(self.text.encode())
        process.leave_behind(holds_output=self.holds_output)
        process.exit(self.exit_code)


@frozen
class Cat(Program):
    """Writes what it reads."""

    children: bool = False
    """Whether a daemon of the same tree runs beside it."""

    reads = True

    def started(self, process: FakeProcess) -> None:
        if self.children:
            process.leave_behind(holds_output=False)
            process.write(b"left\n")

    def stdin(self, process: FakeProcess, data: bytes) -> None:
        if data:
            process.write(data)
        else:
            process.exit(0)


class ExitAsTold(Program):
    """Reads a line with its exit code."""

    reads = True

    def stdin(self, process: FakeProcess, data: bytes) -> None:
        process.exit(int(data or b"1"))


class Yes(Program):
    """Writes for as long as somebody reads."""

    def started(self, process: FakeProcess) -> None:
        process.write(b"y\n" * (PIECE // 2))

    def drained(self, process: FakeProcess) -> None:
        self.started(process)


class Stubborn(Program):
    """Cares nothing for SIGTERM; says so."""

    def started(self, process: FakeProcess) -> None:
        process.write(b"trapped\n")

    def terminated(self, process: FakeProcess) -> None:
        """Nothing."""


class TerminalSizes(Program):
    """Tells the size of its terminal before and after it reads a line."""

    reads = True

    def started(self, process: FakeProcess) -> None:
        size = process.size
        process.write(f"{size.rows} {size.columns}\r\n".encode() if size else b"stty: not a terminal\n")

    def stdin(self, process: FakeProcess, data: bytes) -> None:
        if data:
            self.started(process)
        process.exit(0)


def _environment(process: FakeProcess) -> str:
    return " ".join(process.env[name] for name in ("COLOR", "SHAPE", "PATH")) + "\n"


BY_NAME: Final[Mapping[str, Program]] = {
    "cat": Cat(),
    "echo": Say(lambda process: " ".join(process.command.argv[1:]) + "\n"),
    "false": Say(exit_code=1),
    "hostname": Say(lambda process: f"{process.sandbox_id}\n"),
    "id": Say(lambda process: f"{process.uid}\n"),
    "pwd": Say(lambda process: f"{process.working_dir}\n"),
    "sleep": Program(),
    "true": Say(),
    "yes": Yes(),
}

SCRIPTS: Final[Mapping[str, Program]] = {
    "exit 7": Say(exit_code=7),
    "echo $COLOR $SHAPE $PATH": Say(_environment),
    "kill -9 $$": Say(exit_code=SIGNALLED + SIGKILL),
    "kill -15 $$": Say(exit_code=SIGNALLED + SIGTERM),
    "echo out; echo err >&2": Say(lambda _process: "out\n", errors="err\n"),
    "read line; exit $line": ExitAsTold(),
    "trap '' TERM; echo trapped; while :; do sleep 1000; done": Stubborn(),
    "sleep 1000 & echo left; exit 3": LeaveBehind("left\n", 3, holds_output=True),
    "setsid sleep 1000 >/dev/null 2>&1 & echo left; cat": Cat(children=True),
    "setsid sleep 1000 >/dev/null 2>&1 & echo left": LeaveBehind("left\n"),
    "stty size; read line; stty size": TerminalSizes(),
}
"""What `sh -c` is given."""


def find(argv: tuple[str, ...]) -> Program:
    """The program that a command line names: one that is not there is a shell's complaint about it."""
    match argv:
        case ("sh", "-c", script) if script in SCRIPTS:
            return SCRIPTS[script]
        case ("/etc/passwd", *_):
            return Say(exit_code=126, errors="/etc/passwd: permission denied\n", runs=False)
        case (name, *_) if name in BY_NAME:
            return BY_NAME[name]
        case _:
            return Say(exit_code=127, errors=f"{argv[0]}: not found\n", runs=False)
