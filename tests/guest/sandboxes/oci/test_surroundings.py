"""What programs expect around them, and docker gives: names, limits, shared memory, ports."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_guest.sandboxes.model import BindMount
from arcbox_guest.sandboxes.oci import seccomp
from arcbox_guest.sandboxes.oci.cgroups import ProcessGroup

if TYPE_CHECKING:
    from tests.guest.sandboxes.oci.conftest import Boxes, World


@pytest.fixture
def technique() -> str:
    """One runtime for all: the configuration is the same."""
    return "crun"


async def test_it_knows_its_own_name_and_that_of_the_loopback(boxes: Boxes) -> None:
    box = await boxes()
    assert (await box.run("cat", "/etc/hostname")).text == "box\n"
    hosts = (await box.run("cat", "/etc/hosts")).text.split("\n")
    assert [line.split("\t") for line in hosts if line] == [
        ["127.0.0.1", "localhost"],
        ["::1", "localhost ip6-localhost ip6-loopback"],
        ["127.0.0.1", "box"],
    ]
    assert b"127.0.0.1" in (await box.sh("ping -c 1 -w 5 $(hostname)")).stdout
    assert (await box.run("readlink", "/etc/mtab")).text == "/proc/mounts\n"


async def test_its_name_servers_are_those_of_the_guest(boxes: Boxes) -> None:
    own = Path("/etc/resolv.conf")
    text = own.read_text() if own.exists() else ""
    assert (await (await boxes()).run("cat", "/etc/resolv.conf")).text == text


async def test_root_changes_these_files_for_itself_alone(boxes: Boxes, world: World) -> None:
    etc = Path(world.rootfs, "etc")
    (etc / "hosts").unlink()
    (etc / "hosts").symlink_to("/proc/self/nowhere")  # as images have resolv.conf
    one, other = await boxes("one"), await boxes("other")
    assert (await one.sh("echo 10.0.0.1 db >>/etc/hosts && sed -i s/db/data/ /etc/hosts")).exit_code == 0
    assert (await one.sh("echo mine >>/etc/hosts", user="nobody")).exit_code != 0
    assert "10.0.0.1 data" in (await one.run("cat", "/etc/hosts")).text
    assert "10.0.0.1" not in (await other.run("cat", "/etc/hosts")).text
    assert (etc / "hosts").is_symlink()
    assert not (etc / "hostname").exists()


async def test_a_mount_on_one_of_these_files_is_what_is_seen(boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 mine\n")
    box = await boxes(mounts=(BindMount(source=str(tmp_path / "hosts"), target="/etc/hosts"),))
    assert (await box.run("cat", "/etc/hosts")).text == "127.0.0.1 mine\n"


async def test_a_root_file_system_without_etc_gets_one_and_one_that_can_have_none_does_without(
    boxes: Boxes, world: World
) -> None:
    for path in Path(world.rootfs, "etc").iterdir():
        path.unlink()
    Path(world.rootfs, "etc").rmdir()
    assert (await (await boxes("without")).run("cat", "/etc/hostname")).text == "without\n"
    Path(world.rootfs, "etc").symlink_to("/nowhere")
    assert (await (await boxes("dangling")).run("true")).exit_code == 0


async def test_shared_memory_is_as_large_as_the_memory_limit(boxes: Boxes) -> None:
    box = await boxes(memory_mib=200)
    assert (await box.sh("df -m /dev/shm | tail -n 1")).text.split()[1] == "200"
    assert (await box.sh("head -c 100m /dev/zero >/dev/shm/large; echo $?")).text == "0\n"


PING_AND_BIND = """
import _socket
_socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, _socket.IPPROTO_ICMP).close()
_socket.socket(_socket.AF_INET, _socket.SOCK_STREAM).bind(("127.0.0.1", 80))
print("done")
"""


async def test_any_user_may_ping_and_bind_port_80(boxes: Boxes) -> None:
    # The system's Python: that of the test may lie where nobody else may look.
    box = await boxes(with_python=True, mounts=(BindMount(source="/usr/bin", target="/mnt", readonly=True),))
    argv = ("/mnt/python3", "-I", "-S", "-c", PING_AND_BIND)
    assert (await box.run(*argv, user="nobody")).text == "done\n"


async def test_limits_of_resources_are_those_that_programs_cope_with(boxes: Boxes) -> None:
    """As `docker run` prints them where dockerd has the limits of systemd's defaults: 1024, hard, 0, unlimited."""
    limits = (await (await boxes()).sh("ulimit -n; ulimit -H -n; ulimit -c; ulimit -H -c")).text.split()
    hard = [resource.getrlimit(number)[1] for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
    files, core = ("unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in hard)
    assert limits == ["1024", files, "0", core]


def test_what_is_started_for_a_sandbox_is_no_more_worth_keeping_than_anything_else(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:  # noqa: S607
        try:
            adjustment = Path(f"/proc/{child.pid}/oom_score_adj")
            try:
                adjustment.write_text("-500")
            except PermissionError:
                pytest.skip("to lower it takes CAP_SYS_RESOURCE")
            ProcessGroup(None, tmp_path, tmp_path).enter(child.pid)
            assert adjustment.read_text() == "0\n"
        finally:
            child.kill()


def names(profile: dict[str, object], action: str) -> set[str]:
    rules = profile["syscalls"]
    assert isinstance(rules, list)
    return {name for rule in rules if rule["action"] == action for name in rule["names"]}


@pytest.mark.parametrize("common", ["/usr/share/containers/seccomp.json", "/nowhere", os.devnull])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_there_is_a_filter_for_every_machine_with_the_list_of_others_or_without(common: str, machine: str) -> None:
    profile = seccomp.profile({"CAP_SYS_CHROOT"}, machine, Path(common))
    allowed, refused = names(profile, "SCMP_ACT_ALLOW"), names(profile, "SCMP_ACT_ERRNO")
    assert {"read", "execve", "openat", "chroot", "clone", "socket", "futex"} <= allowed
    assert {"mount", "unshare", "bpf", "io_uring_setup", "setns", "open_by_handle_at", "keyctl"} <= refused
    assert not allowed & refused
    assert "clone3" not in allowed
    assert [rule for rule in profile["syscalls"] if "socket" in rule["names"] and not rule["args"]] == []
