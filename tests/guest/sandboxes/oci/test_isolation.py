"""What a process inside of a sandbox sees, and what it can do."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_guest.sandboxes.model import BindMount, ExecSpec

if TYPE_CHECKING:
    from tests.guest.sandboxes.oci.conftest import Box, Boxes, World

DOCKER_LIKE = 0x00000000A80425FB
"""chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
audit_write and setfcap, by their numbers in linux/capability.h."""

SYSCALL = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    return "done" if libc.syscall(*arguments) >= 0 else errno.errorcode[ctypes.get_errno()]
"""

OVERWRITE = """
import os, select
print("watching", flush=True)
tried = 0
while not select.select([0], [], [], 0)[0]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            handle = os.open(f"/proc/{pid}/exe", os.O_PATH)
        except OSError:
            continue
        try:
            tried += 1
            os.write(os.open(f"/proc/self/fd/{handle}", os.O_WRONLY | os.O_TRUNC), b"#!/bin/false")
        except OSError:
            pass
        os.close(handle)
print(tried)
"""


async def test_it_sees_its_own_processes_only(boxes: Boxes) -> None:
    box = await boxes()
    listing = (await box.sh("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done")).text
    programs = [line.split()[0] for line in listing.splitlines() if line]
    assert programs[0] == "/dev/init"
    assert set(programs) <= {"/dev/init", "sh", "tr"}


async def test_it_can_signal_nothing_outside(boxes: Boxes) -> None:
    box = await boxes()
    assert (await box.sh(f"kill -0 {os.getpid()}")).exit_code == 1
    await boxes("neighbour")
    await box.sh("kill -9 -1")
    assert (await box.run("true")).exit_code == 0
    assert (await boxes.world.driver.statistics("neighbour")).processes == 1


async def test_nothing_of_the_guest_is_mounted_but_its_own(boxes: Boxes, world: World, tmp_path: Path) -> None:
    box = await boxes()
    mounts = (await box.run("cat", "/proc/self/mountinfo")).text
    targets = {line.split()[4] for line in mounts.splitlines()}
    assert {"/", "/proc", "/dev", "/sys"} <= targets
    assert all(target.startswith(("/proc", "/dev", "/sys")) or target == "/" for target in targets)
    assert (await box.run("test", "-e", str(tmp_path))).exit_code == 1
    assert (await box.run("test", "-e", str(world.driver.data_dir))).exit_code == 1


async def test_it_is_called_by_its_id(boxes: Boxes) -> None:
    box = await boxes("a-name.of_its-own")
    assert (await box.run("hostname")).text == "a-name.of_its-own\n"
    assert socket.gethostname() != "a-name.of_its-own"


async def test_its_network_is_the_loopback_which_is_its_own(boxes: Boxes) -> None:
    box = await boxes()
    assert (await box.run("ls", "/sys/class/net")).text == "lo\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = await box.run("nc", "127.0.0.1", str(port))
        assert b"refused" in result.stderr
    # A FIFO that never ends: nc leaves at the end of the other's input, whatever it has still to send itself.
    script = "mkfifo /tmp/quiet; echo up | nc -l -p 7 & until nc 127.0.0.1 7 2>/dev/null <>/tmp/quiet; do :; done"
    assert (await box.sh(script, timeout=20)).stdout == b"up\n"


async def test_every_namespace_is_its_own(boxes: Boxes) -> None:
    box = await boxes()
    inside = (await box.sh("for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done")).text.split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "uts", "ipc", "net", "cgroup")]
    assert len(inside) == 6
    assert not set(inside) & set(outside)


async def test_root_has_the_capabilities_that_docker_gives_and_no_way_to_more(boxes: Boxes) -> None:
    status = await _status(await boxes())
    assert int(status["CapBnd"], 16) == DOCKER_LIKE
    assert int(status["CapEff"], 16) == DOCKER_LIKE
    assert int(status["CapPrm"], 16) == DOCKER_LIKE
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "0"
    assert status["Seccomp"] == "2"


async def test_nothing_of_sys_can_be_written(boxes: Boxes) -> None:
    options = (await (await boxes()).sh("grep ' /sys ' /proc/mounts | cut -d ' ' -f 4")).text
    assert {"ro", "nosuid", "noexec", "nodev"} <= set(options.strip().split(","))


async def test_other_users_have_no_capability(boxes: Boxes) -> None:
    status = await _status(await boxes(), user="nobody")
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0


async def _status(box: Box, user: str = "") -> dict[str, str]:
    lines = (await box.run("cat", "/proc/self/status", user=user)).text.splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


CHANGES = (
    "mount -t tmpfs none /mnt",
    "mount -o remount,rw /sys",
    "umount /proc",
    "unshare -m true",
    "unshare -U true",
    "unshare -n true",
    "nsenter -t 1 -m true",
    "hostname other",
    "echo 1 >/proc/sys/kernel/panic",
    "echo h >/proc/sysrq-trigger",  # h only asks for help
    "echo 0 >/sys/kernel/uevent_seqnum",
    "chroot / mount -t proc none /proc",
    "dmesg",
    "insmod /etc/passwd",
    "ip link add dummy0 type dummy",
)


async def test_what_would_change_the_machine_is_refused(boxes: Boxes) -> None:
    box = await boxes()
    for script in CHANGES:
        result = await box.sh(script)
        assert result.exit_code != 0, script
        assert result.stderr, script


async def test_it_can_make_no_cgroup_and_move_into_none(boxes: Boxes) -> None:
    box = await boxes()
    script = """
        find /sys/fs/cgroup -name cgroup.procs | while read procs; do
            mkdir ${procs%/*}/mine && echo made one
            echo $$ >$procs && echo moved
        done 2>/dev/null
        find /sys/fs/cgroup -name cgroup.procs | head -n 1
    """
    assert (await box.sh(script)).text.strip().endswith("cgroup.procs")
    assert len((await box.sh(script)).text.splitlines()) == 1


async def test_system_calls_that_lead_out_are_refused(boxes: Boxes) -> None:
    box = await boxes(with_python=True, memory_mib=256)
    numbers = {"bpf": 321, "keyctl": 250, "perf_event_open": 298, "userfaultfd": 323, "init_module": 175, "reboot": 169}
    numbers |= {"setns": 308, "open_by_handle_at": 304, "kexec_load": 246, "mount": 165, "pivot_root": 155, "acct": 163}
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    code = SYSCALL + f"for name, number in {numbers}.items(): print(name, call(number, 0, 0, 0, 0, 0))"
    answers = dict(line.split() for line in (await box.python(code)).text.splitlines())
    assert answers == dict.fromkeys(numbers, "EPERM")


async def test_a_user_namespace_can_not_be_had_by_any_way_of_making_a_process(boxes: Boxes) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    box = await boxes(with_python=True, memory_mib=256)
    code = SYSCALL + textwrap.dedent("""
        NEWUSER, SIGCHLD = 0x10000000, 17
        print(call(56, NEWUSER | SIGCHLD, 0, 0, 0, 0))                  # clone
        print(call(435, ctypes.create_string_buffer(88), 88))           # clone3
        print(call(272, NEWUSER))                                       # unshare
    """)
    assert "done" not in (await box.python(code)).text.split()


async def test_the_host_and_the_agent_can_not_be_reached_over_vsock(boxes: Boxes) -> None:
    box = await boxes(with_python=True, memory_mib=256)
    code = "import _socket, errno\ntry: _socket.socket(40, 1)\nexcept OSError as e: print(errno.errorcode[e.errno])"
    assert (await box.python(code)).text.strip() in {"EPERM", "ENOSYS", "EAFNOSUPPORT"}
    assert (await box.python("import _socket; _socket.socket(1, 1); print('unix')")).text == "unix\n"


async def test_bits_that_the_kernel_does_not_look_at_get_nothing_past_the_filter(boxes: Boxes) -> None:
    """A filter sees 64 bits of an argument that for the kernel is an int."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    box = await boxes(with_python=True, memory_mib=256)
    code = SYSCALL + textwrap.dedent("""
        high = 1 << 32
        for family in (40, 40 | high, 38, 38 | high):                   # vsock, and the kernel's cryptography
            print(call(41, ctypes.c_uint64(family), ctypes.c_uint64(1), ctypes.c_uint64(0)))
        print(call(41, ctypes.c_uint64(1), ctypes.c_uint64(1), ctypes.c_uint64(0)))
    """)
    answers = (await box.python(code)).text.split()
    assert answers[-1] == "done"
    assert "done" not in answers[:-1]


async def test_kernel_files_that_tell_or_change_too_much_are_hidden(boxes: Boxes) -> None:
    box = await boxes()
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"):
        if Path(path).exists():
            assert (await box.sh(f"cat {path} 2>/dev/null || ls -A {path}")).stdout == b""
    assert (await box.sh("test -w /proc/sys/kernel/hostname && echo x > /proc/sys/kernel/hostname")).exit_code != 0


async def test_its_devices_are_the_harmless_ones(boxes: Boxes) -> None:
    box = await boxes()
    devices = (await box.sh("cd /dev; find . -type c -o -type b | sort")).text.split()
    names = {os.path.basename(path) for path in devices}
    assert names - {"ptmx", "console"} == {"null", "zero", "full", "random", "urandom", "tty"}
    result = await box.sh("mknod /tmp/disk b 8 0 && cat /tmp/disk")
    assert (result.exit_code, result.stdout) == (1, b"")
    assert b"denied" in result.stderr or b"not permitted" in result.stderr


async def test_it_has_no_file_of_the_agents_open(boxes: Boxes) -> None:
    box = await boxes()
    assert (await box.run("ls", "/proc/self/fd")).text.split() == ["0", "1", "2", "3"]  # 3 is the directory
    # The init has only just begun: one of its files may be gone by the time that it is looked at.
    init = (await box.sh("for f in /proc/1/fd/*; do readlink $f || true; done")).text.split()
    assert all(path == "/dev/null" or path.startswith(("anon_inode:", "pipe:")) for path in init)


async def test_it_sees_nothing_of_the_agents_environment(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the agent")
    box = await boxes(env={"ITS": "own"})
    environment = dict(line.split("=", 1) for line in (await box.run("env")).text.splitlines())
    assert environment.pop("PATH").startswith("/")
    assert environment.pop("SHLVL", "0").isdecimal()
    assert environment == {"ITS": "own", "HOME": "/root", "HOSTNAME": "box"}
    assert b"SECRET" not in (await box.sh("cat /proc/1/environ")).stdout


async def test_what_one_writes_no_other_sees_and_the_root_file_system_stays_as_it_was(
    boxes: Boxes, world: World
) -> None:
    before = sorted(str(path) for path in Path(world.rootfs).rglob("*"))
    one, other = await boxes("one"), await boxes("other")
    assert (await one.sh("echo mine >/etc/secret; rm /etc/passwd; mkdir -p /srv/deep; chmod 700 /tmp")).exit_code == 0
    assert (await other.sh("test -e /etc/secret -o -e /srv/deep")).exit_code == 1
    assert (await other.sh("cat /etc/passwd >/dev/null; stat -c %a /tmp")).text == "1777\n"
    assert sorted(str(path) for path in Path(world.rootfs).rglob("*")) == before


@pytest.mark.parametrize("ruled_out", [False, True])
async def test_set_user_id_programs_work_unless_that_is_ruled_out(
    boxes: Boxes, world: World, *, ruled_out: bool
) -> None:
    world.driver.no_new_privileges = ruled_out
    # Not a busybox, which drops what it does not need.
    box = await boxes(with_python=True, mounts=(BindMount(source="/usr/bin/id", target="/mnt/id", readonly=True),))
    assert (await box.sh("cp /mnt/id /tmp/id; chmod 4755 /tmp/id")).exit_code == 0
    assert (await box.run("/tmp/id", "-u", user="nobody")).text == ("65534\n" if ruled_out else "0\n")


async def test_the_runtime_itself_can_not_be_overwritten_from_inside(boxes: Boxes, world: World) -> None:
    """As in CVE-2019-5736: a process waits for one that enters the sandbox, and opens the program of that to write."""
    # What is run can't be written to: the sandbox's own busybox would be the attacker's to overwrite once it has ended.
    true = BindMount(source="/usr/bin/true", target="/mnt/true", readonly=True)
    box = await boxes(with_python=True, memory_mib=256, mounts=(true,))
    paths = [shutil.which(world.driver.runtime) or "", shutil.which("catatonit") or ""]
    before = [Path(path).read_bytes() for path in paths]
    async with world.driver.process(box.id, ExecSpec(argv=(sys.executable, "-I", "-S", "-c", OVERWRITE))) as attacker:
        assert bytes(await attacker.stdout.receive()) == b"watching\n"
        for _ in range(8):
            assert (await box.run("/mnt/true")).exit_code == 0
        await attacker.close_stdin()
        seen = bytes(await attacker.stdout.receive()).split()
        assert await attacker.wait() == 0
    assert int(seen[0]) > 0  # it did try
    assert [Path(path).read_bytes() for path in paths] == before
    assert (await box.sh("echo >/dev/init")).exit_code != 0
