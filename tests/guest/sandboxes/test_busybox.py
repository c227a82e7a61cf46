"""The small root file system: built for real, looked at with the tools of its formats, and run in a chroot."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from arcbox_guest.errors import ConflictError, GuestError, InvalidArgumentError, UnavailableError
from arcbox_guest.sandboxes.busybox import build

pytestmark = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox, of Debian's busybox-static")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("rootfs") / "tree"
    build(target)
    return target


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can chroot")
def test_a_shell_and_its_tools_run_in_it(tree: Path) -> None:
    script = "id -un && cd /tmp && echo hi > x && /usr/bin/wc -c < x && rm x && /sbin/true && whoami"
    done = subprocess.run(  # noqa: S603  of the system
        ["/usr/sbin/chroot", tree, "/bin/sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/bin"},
    )
    assert (done.stdout, done.stderr) == ("root\n3\nroot\n", "")


def test_what_programs_expect_is_there_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        build(tmp_path / "tree")
    finally:
        os.umask(before)
    for name, mode in (("", 0o755), ("tmp", 0o1777), ("root", 0o700), ("etc/passwd", 0o644), ("bin/busybox", 0o755)):
        assert stat.S_IMODE((tmp_path / "tree" / name).stat().st_mode) == mode, name


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("image.ext4", ["e2fsck", "-f", "-n"]),
        ("image.squashfs", ["unsquashfs", "-stat"]),
        ("image.erofs", ["fsck.erofs"]),
    ],
)
def test_an_image_is_one_of_the_kind_that_its_name_ends_with(name: str, check: list[str], tmp_path: Path) -> None:
    if shutil.which(check[0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip(f"{check[0]} is not installed")
    build(tmp_path / name)
    done = subprocess.run([*check, tmp_path / name], check=False, capture_output=True, text=True)  # noqa: S603  ours
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name], "something was left beside it"


def test_what_exists_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "tree"
    target.mkdir()
    with pytest.raises(ConflictError, match="exists already"):
        build(target)
    target.rmdir()
    target.symlink_to("nowhere")
    with pytest.raises(ConflictError, match="exists already"):
        build(target)


def test_the_directory_that_it_is_put_in_is_made_where_there_is_none(tmp_path: Path) -> None:
    build(tmp_path / "lib" / "arcbox" / "tree")
    assert (tmp_path / "lib" / "arcbox" / "tree" / "bin" / "sh").is_symlink()


def test_a_busybox_that_needs_libraries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not linked statically"):
        build(tmp_path / "tree", Path("/bin/ls"))
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_not_installed_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)  # noqa: ARG005  its signature
    with pytest.raises(UnavailableError, match="busybox is not installed; Debian has it in busybox-static"):
        build(tmp_path / "tree")


def test_a_program_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "busybox"
    broken.write_text("#!/bin/sh\necho 'no applets today' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(GuestError, match="busybox ended with 3; it said: no applets today"):
        build(tmp_path / "tree", broken)
    assert list(tmp_path.iterdir()) == [broken]
