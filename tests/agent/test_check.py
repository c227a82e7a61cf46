"""`arcbox-agent check`: probes on machines that are made up, and on this one."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from attrs import evolve
from google.protobuf.internal import api_implementation

from arcbox_agent import _machine
from arcbox_agent.__main__ import run
from arcbox_agent._machine import Machine, ToolError
from arcbox_agent.check import PROBES, Finding, examine, for_people, for_programs
from arcbox_agent.settings import Sandbox, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Add = Callable[..., None]
    AddTool = Callable[[str, str], Path]

ROOT_STATUS = "Name:\tagent\nCapEff:\t000001ffffffffff\n"
USER_STATUS = "Name:\tagent\nCapEff:\t0000000000000000\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has nothing at all."""
    return Machine(
        root=tmp_path,
        search_path=str(tmp_path / "bin"),
        bind_vsock=lambda: None,
        read_cid=lambda _: 3,
        file_limit=lambda: 1_000_000,
        cpu_count=lambda: 4,
    )


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Adds a file to that machine."""

    def add_file(path: str, text: str = "") -> None:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return add_file


@pytest.fixture
def add_tool(tmp_path: Path) -> Callable[[str, str], Path]:
    """Adds an executable shell script to it."""

    def add_script(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return add_script


def look(name: str, machine: Machine) -> Finding:
    (probe,) = [probe for probe in PROBES if probe.name == name]
    return probe(machine)


def fails_with(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_machine_that_has_nothing_is_described_without_an_error(machine: Machine) -> None:
    findings = {finding.name: finding for finding in examine(machine)}
    assert findings["proc"].prevents_serving
    assert findings["cgroups"].status == "missing"
    assert findings["crun"].status == "missing"
    assert not json.loads(for_programs(list(findings.values())))["ok"]


def test_only_what_the_agent_can_not_do_without_prevents_serving() -> None:
    assert [probe.name for probe in PROBES if probe.essential] == ["proc", "vsock"]
    assert not any(finding.prevents_serving for finding in examine(Machine(settings=Settings(listen=("unix:/x",)))))


def test_this_machine_is_described_as_it_is() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert os.uname().release in findings["kernel"].detail
    assert str(os.cpu_count()) in findings["machine"].detail
    assert findings["proc"].status == "ok"


def test_vsock_without_the_address_family_is_missing(machine: Machine) -> None:
    finding = look("vsock", evolve(machine, bind_vsock=fails_with(errno.EAFNOSUPPORT)))
    assert finding.status == "missing"
    assert os.strerror(errno.EAFNOSUPPORT) in finding.detail


def test_vsock_without_a_cid_of_its_own_is_missing_if_it_is_listened_on(machine: Machine) -> None:
    without = evolve(machine, read_cid=lambda _: None)
    finding = look("vsock", without)
    assert finding.prevents_serving
    assert "vmw_vsock_virtio_transport" in finding.detail
    assert look("vsock", evolve(without, settings=Settings(listen=("unix:/x",)))).status == "limited"
    assert look("vsock", evolve(without, read_cid=fails_with(errno.ENOENT))).prevents_serving


def test_protobuf_that_is_interpreted_is_no_secret(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("protobuf", machine).status == "ok"
    monkeypatch.setattr(api_implementation, "Type", lambda: "python")
    assert look("protobuf", machine).status == "limited"


def test_a_data_directory_on_an_overlay_is_no_good(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("data directory", machine).status == "ok"
    monkeypatch.setattr(_machine, "file_system_type", lambda _path: 0x794C7630)
    assert look("data directory", machine).status == "missing"


def test_the_root_file_system_of_sandboxes_is_looked_for(machine: Machine, add: Add) -> None:
    assert look("rootfs", machine).status == "limited"
    configured = evolve(machine, settings=Settings(sandbox=Sandbox(rootfs="/srv/box.squashfs")))
    assert look("rootfs", configured).status == "missing"
    add("/srv/box.squashfs")
    assert look("rootfs", configured).status == "ok"


def test_an_image_says_what_it_lacks_by_its_exit_status(
    tmp_path: Path, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add("/etc/arcbox/agent.toml", 'sandbox.rootfs = "/var/lib/arcbox/rootfs.squashfs"\n')
    add("/var/lib/arcbox/rootfs.squashfs")
    add("/usr/lib/x86_64-linux-gnu/libstdc++.so.6")
    add("/lib/systemd/system/arcbox-agent.service")
    add("/etc/systemd/system/multi-user.target.wants/arcbox-agent.service")
    modules = ("vmw_vsock_virtio_transport", "overlay", "loop", "squashfs")
    add("/lib/modules/6.1.0/modules.dep", "".join(f"kernel/{name}.ko: \n" for name in modules))
    for name in ("arcbox-agent", "crun", "catatonit", "nft"):
        add(f"/usr/bin/{name}")
        (tmp_path / "usr" / "bin" / name).chmod(0o755)
    assert run(["check", "--image", str(tmp_path)]) == 0
    (tmp_path / "usr" / "bin" / "catatonit").unlink()
    assert run(["check", "--image", str(tmp_path), "--json"]) == 1
    assert "no catatonit" in capsys.readouterr().out


def test_vsock_with_a_cid_says_which(machine: Machine) -> None:
    finding = look("vsock", machine)
    assert (finding.status, finding.detail) == ("ok", "CID 3")


V2 = "30 1 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "".join(
    f"3{number} 31 0:2{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(("cpu,cpuacct", "memory", "pids"))
)
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mounts", "controllers", "status", "detail"),
    [
        (V2, "cpuset cpu io memory hugetlb pids", "ok", "v2, with cpu, memory, pids"),
        (V2, "cpu io", "limited", "v2, without memory, pids"),
        (V1, "", "ok", "v1, with cpu, memory, pids"),
        (HYBRID, "", "ok", "hybrid, with cpu, memory, pids"),
        ("22 1 8:1 / / rw - ext4 /dev/vda rw\n", "", "missing", "no cgroup hierarchy is mounted"),
        ("not what the kernel writes\n", "", "limited", "can't be found out"),
    ],
)
def test_cgroups_are_told_apart_and_their_controllers_counted(
    machine: Machine, add: Add, *, mounts: str, controllers: str, status: str, detail: str
) -> None:
    add("/proc/self/mountinfo", mounts)
    add("/sys/fs/cgroup/cgroup.controllers", controllers)
    finding = look("cgroups", machine)
    assert finding.status == status
    assert detail in finding.detail


def test_a_file_system_that_the_kernel_knows_can_be_mounted_with_privileges_only(machine: Machine, add: Add) -> None:
    add("/proc/filesystems", "nodev\tproc\nnodev\toverlay\n\text4\n")
    add("/proc/self/status", ROOT_STATUS)
    assert (look("overlay", machine).status, look("ext4", machine).status) == ("ok", "ok")
    assert look("btrfs", machine).status == "missing"
    add("/proc/self/status", USER_STATUS)
    assert look("overlay", machine).status == "limited"
    assert look("privileges", machine).status == "missing"


def test_a_file_system_may_be_a_module_that_is_not_loaded_yet(machine: Machine, add: Add) -> None:
    add("/proc/self/status", ROOT_STATUS)
    add("/proc/sys/kernel/osrelease", "6.1.0-test\n")
    add("/lib/modules/6.1.0-test/modules.dep", "kernel/fs/erofs/erofs.ko.xz: kernel/lib/crc.ko.xz\n")
    assert (look("erofs", machine).status, look("squashfs", machine).status) == ("ok", "missing")


def test_fuse_takes_its_device_too(machine: Machine, add: Add) -> None:
    add("/proc/filesystems", "nodev\tfuse\n")
    add("/proc/self/status", ROOT_STATUS)
    assert look("fuse", machine).status == "limited"
    add("/dev/fuse")
    assert look("fuse", machine).status == "ok"


def test_a_kvm_device_is_never_taken_for_one_that_works(machine: Machine, add: Add) -> None:
    assert look("kvm", machine).status == "missing"
    add("/dev/kvm")
    finding = look("kvm", machine)
    assert finding.status == "limited"
    assert "only a boot can tell" in finding.detail


def test_namespaces_that_are_missing_are_named(machine: Machine, add: Add) -> None:
    for name in ("cgroup", "ipc", "mnt", "net", "uts"):
        add(f"/proc/self/ns/{name}")
    assert look("namespaces", machine).detail == "the kernel has no pid"
    add("/proc/self/ns/pid")
    assert look("namespaces", machine).status == "ok"


def test_init_is_systemd_only_where_systemd_runs(machine: Machine, add: Add) -> None:
    add("/proc/1/comm", "busybox\n")
    finding = look("init", machine)
    assert finding.status == "limited"
    assert "busybox" in finding.detail
    machine.path("/run/systemd/system").mkdir(parents=True)
    assert look("init", machine).status == "ok"


def test_memory_and_processors_are_told(machine: Machine, add: Add) -> None:
    add("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    assert look("machine", machine).detail == "4 processors, 8.0 GiB"


def test_few_open_files_are_a_limit(machine: Machine) -> None:
    assert look("open files", evolve(machine, file_limit=lambda: 1024)).status == "limited"


def test_a_tool_is_shown_with_its_version_and_path(machine: Machine, add_tool: AddTool) -> None:
    path = add_tool("crun", 'echo "crun version 9.9"; echo "spec: 1"')
    finding = look("crun", machine)
    assert (finding.status, finding.detail) == ("ok", f"crun version 9.9 ({path})")


def test_a_tool_that_fails_is_limited_and_says_how(machine: Machine, add_tool: AddTool) -> None:
    add_tool("runc", "exit 7")
    finding = look("runc", machine)
    assert finding.status == "limited"
    assert "fails with status 7" in finding.detail
    (machine.root / "bin" / "runc").write_bytes(b"\x7fELF not really")
    assert "can't be run" in look("runc", machine).detail


def test_what_a_tool_prints_can_not_talk_to_a_terminal(machine: Machine, add_tool: AddTool) -> None:
    add_tool("nft", r"printf 'nft \033[2J\rversion 1\n'")
    assert look("nft", machine).detail.isprintable()


def test_a_tool_that_hangs_is_killed_with_all_that_it_started(
    machine: Machine, add_tool: AddTool, tmp_path: Path
) -> None:
    fifo = tmp_path / "held open by the tool"
    os.mkfifo(fifo)
    path = add_tool("dockerd", f"exec 3> '{fifo}'; sleep 1000 & echo started >&3; wait")
    with os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as held:
        with pytest.raises(ToolError, match=r"did not answer within 0\.5 s"):
            evolve(machine, deadline=0.5).first_line(str(path), "--version")
        os.set_blocking(held.fileno(), True)
        assert held.read() == b"started\n"  # to its end: nobody holds it any more


def test_people_get_a_table_with_one_line_for_each_finding(machine: Machine) -> None:
    findings = examine(machine)
    head, *lines = for_people(findings).split("\n")
    assert len(lines) == len(findings)
    column = head.index("STATUS")
    for line, finding in zip(lines, findings, strict=True):
        assert line.startswith(finding.name)
        assert line[column:].startswith(finding.status)


def test_programs_get_the_same_as_json(machine: Machine) -> None:
    findings = examine(machine)
    report = json.loads(for_programs(findings))
    assert set(report) == {"version", "ok", "findings"}
    assert [found["name"] for found in report["findings"]] == [finding.name for finding in findings]
    assert set(report["findings"][0]) == {"name", "status", "detail", "needed_for", "essential"}
