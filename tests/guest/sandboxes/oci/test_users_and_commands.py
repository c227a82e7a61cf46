"""Who a process runs as, and what a command line finds: asked of files that may be hostile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from arcbox_guest.errors import InvalidArgumentError
from arcbox_guest.sandboxes.model import TerminalSize

if TYPE_CHECKING:
    from tests.guest.sandboxes.oci.conftest import Boxes


@pytest.fixture
def technique() -> str:
    """One runtime: what is tested here is done before it is called."""
    return "crun"


async def ids(boxes: Boxes, user: str) -> str:
    box = await boxes()
    await box.sh("echo 'web:x:1000:1001::/srv/web:/bin/sh' >>/etc/passwd")
    await box.sh("printf 'web:x:1001:\\nextra:x:2000:other,web\\nmore:x:2001:web\\n' >>/etc/group")
    result = await box.sh('echo "$(id -u) $(id -g) $(id -G) $HOME"', user=user)
    return result.text.strip()


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("web", "1000 1001 1001 2000 2001 /srv/web"),
        ("1000", "1000 1001 1001 2000 2001 /srv/web"),
        ("web:extra", "1000 2000 2000 /srv/web"),
        ("web:0", "1000 0 0 /srv/web"),
        ("4321", "4321 0 0 /"),
        ("4321:1234", "4321 1234 1234 /"),
        ("0:1234", "0 1234 1234 /root"),
    ],
)
async def test_a_user_is_what_the_sandboxs_own_files_say(boxes: Boxes, user: str, expected: str) -> None:
    assert await ids(boxes, user) == expected


async def test_others_may_read_what_a_process_makes(boxes: Boxes) -> None:
    box = await boxes()
    assert (await box.sh("umask")).text == "0022\n"
    assert (await box.sh("umask", user="nobody")).text == "0022\n"


async def test_a_terminal_has_a_type_that_programs_know(boxes: Boxes) -> None:
    box = await boxes(env={"TERM": "dumb"})
    plain = await boxes("plain")
    assert (await plain.sh("echo $TERM", terminal=TerminalSize())).text == "xterm-256color\r\n"
    assert (await box.sh("echo $TERM", terminal=TerminalSize())).text == "dumb\r\n"


@pytest.mark.parametrize("user", ["ghost", ":", "root:", ":0", "root:ghost", "-1", "4294967295", "9" * 30, "1.5", "٣"])
async def test_a_user_that_there_is_not_is_an_error_with_the_name(boxes: Boxes, user: str) -> None:
    box = await boxes()
    with pytest.raises(InvalidArgumentError, match=r"user|group"):
        await box.run("true", user=user)


@pytest.mark.parametrize(
    "make",
    [
        "mkfifo /etc/passwd",
        "mknod /etc/passwd c 1 5",
        "mkdir /etc/passwd",
        "truncate -s 1T /etc/passwd",
        "ln -s /proc/1/environ /etc/passwd",
        "ln -s /etc/passwd /etc/passwd",
        "head -c 100000 /dev/urandom >/etc/passwd",
        "printf 'root\\n::::\\nroot:x:99999999999:0:::\\n' >/etc/passwd",
    ],
)
async def test_whatever_passwd_is_root_can_run_things(boxes: Boxes, technique: str, make: str) -> None:
    if technique == "runc" and make.startswith(("mkfifo", "mkdir")):
        pytest.skip("runc itself reads the file, inside: it waits for the FIFO, and gives up on the directory")
    box = await boxes()
    await box.sh(f"rm /etc/passwd; {make}")
    assert "Uid:\t0\t0" in (await box.run("cat", "/proc/self/status")).text
    with pytest.raises(InvalidArgumentError):
        await box.run("true", user="web")


@pytest.mark.parametrize(
    ("prepare", "argv", "exit_code", "complaint"),
    [
        ("", ["not-there"], 127, b"not-there: not found\n"),
        ("", ["/not/there"], 127, b"/not/there: not found\n"),
        ("", ["/bin/sh/there"], 127, b"/bin/sh/there: not found\n"),
        ("", ["/etc"], 126, b"/etc: is a directory\n"),
        ("", ["/etc/passwd"], 126, b"/etc/passwd: permission denied\n"),
        ("echo hi >/tmp/text; chmod +x /tmp/text", ["/tmp/text"], 126, b"/tmp/text: exec format error\n"),
        ("echo '#!/gone' >/tmp/s; chmod +x /tmp/s", ["/tmp/s"], 127, b"/tmp/s: its interpreter /gone is not found\n"),
        (": >/tmp/empty; chmod +x /tmp/empty", ["/tmp/empty"], 126, b"/tmp/empty: exec format error\n"),
        ("mkfifo /tmp/fifo; chmod +x /tmp/fifo", ["/tmp/fifo"], 126, b"/tmp/fifo: permission denied\n"),
        ("ln -s loop /tmp/loop", ["/tmp/loop"], 126, b"/tmp/loop: "),
        ("", ["x" * 300], 126, b"x: file name too long\n"),
    ],
)
async def test_a_command_that_can_not_run_says_why_as_a_shell_does(
    boxes: Boxes, prepare: str, argv: list[str], exit_code: int, complaint: bytes
) -> None:
    box = await boxes()
    await box.sh(prepare or "true")
    result = await box.run(*argv)
    assert (result.exit_code, result.stdout) == (exit_code, b"")
    assert complaint in result.stderr


@pytest.mark.parametrize("too_long", [["x" * 131_072], ["x" * 100_000] * 70])
async def test_arguments_that_are_too_long_are_what_a_shell_calls_them(boxes: Boxes, too_long: list[str]) -> None:
    box = await boxes()
    result = await box.run("true", *too_long)
    assert (result.exit_code, result.stderr) == (126, b"true: argument list too long\n")


@pytest.mark.parametrize("long", [["x" * 131_071], ["x" * 100_000] * 15])
async def test_arguments_may_be_as_long_as_the_kernel_lets_them(boxes: Boxes, long: list[str]) -> None:
    box = await boxes()
    assert (await box.run("true", *long)).exit_code == 0


async def test_a_program_of_another_machine_is_an_exec_format_error(boxes: Boxes) -> None:
    box = await boxes()
    # An ELF file for the PDP-11, as in elf(5): e_machine, two bytes at offset 18.
    await box.sh(
        "cd /tmp; head -c 4096 /bin/busybox >pdp; printf '\\101' | dd of=pdp bs=1 seek=18 conv=notrunc; chmod +x pdp"
    )
    result = await box.run("/tmp/pdp")
    assert result.exit_code in (126, 255, 1)
    assert b"xec format error" in result.stderr


async def test_a_script_runs_by_its_interpreter(boxes: Boxes) -> None:
    box = await boxes()
    await box.sh("printf '#!/bin/sh\\necho by sh $1\\n' >/tmp/script; chmod +x /tmp/script")
    assert (await box.run("/tmp/script", "one")).text == "by sh one\n"


@pytest.mark.parametrize(
    ("path", "runs"),
    [("/nowhere:/tmp/bin", True), ("/nowhere", False), ("", False), (":/nowhere", False), ("bin", False)],
)
async def test_a_command_is_looked_for_where_path_says_and_not_where_one_happens_to_be(
    boxes: Boxes, path: str, *, runs: bool
) -> None:
    box = await boxes()
    await box.sh(
        "mkdir /tmp/bin; for d in /tmp /tmp/bin; do printf '#!/bin/sh\\necho ran\\n' >$d/mine; chmod +x $d/mine; done"
    )
    result = await box.run("mine", env={"PATH": path}, working_dir="/tmp")
    assert result == type(result)(0, b"ran\n", b"") if runs else result.exit_code == 127


async def test_what_may_not_be_executed_is_passed_over_for_what_may(boxes: Boxes) -> None:
    box = await boxes()
    await box.sh(
        "mkdir /tmp/a /tmp/b; echo >/tmp/a/mine; printf '#!/bin/sh\\necho ran\\n' >/tmp/b/mine; chmod +x /tmp/b/mine"
    )
    assert (await box.run("mine", env={"PATH": "/tmp/a:/tmp/b"})).text == "ran\n"
    assert (await box.run("mine", env={"PATH": "/tmp/a"})).exit_code == 126


async def test_permissions_are_those_of_the_user(boxes: Boxes) -> None:
    box = await boxes()
    await box.sh("cp /bin/busybox /tmp/echo; chmod 750 /tmp/echo")
    assert (await box.run("/tmp/echo", "hi")).text == "hi\n"
    assert (await box.run("/tmp/echo", "hi", user="nobody")).exit_code == 126
    assert (await box.run("/tmp/echo", "hi", user="nobody:0")).text == "hi\n"
