"""The Debian package, in a copy of the image's root: no virtual machine is needed."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.vm.image import Image


def chroot(root: Path, *command: str) -> str:
    done = subprocess.run(
        ["chroot", root, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", arguments[-1]], check=True)


def left(root: Path) -> list[str]:
    """All paths with the agent's name in them; `dpkg` remembers nothing of what was purged."""
    found = chroot(root, "find", "/", "-xdev", "-iname", "*arcbox*", "-print").splitlines()
    broken = chroot(root, "find", "/etc/systemd", "-xtype", "l", "-lname", "*arcbox*").splitlines()
    return found + broken


@pytest.fixture
def root(guest_image: Image, tmp_path: Path) -> Iterator[Path]:
    """The root of the image, with the package installed; what is changed in it is gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with (
        mounted("-o", "loop,ro", guest_image.disk, lower),
        mounted("-t", "overlay", "overlay", "-o", layers, merged),
    ):
        yield merged


def test_a_purge_leaves_nothing(root: Path) -> None:
    assert len(left(root)) > 10
    chroot(root, "dpkg", "--purge", "arcbox-agent")
    assert left(root) == []
    assert "arcbox" not in chroot(root, "sh", "-c", "cat /var/lib/dpkg/status")


def test_a_root_with_the_package_passes_the_check_of_images(root: Path) -> None:
    assert "missing" not in chroot(root, "arcbox-agent", "check", "--image", "/")


def test_the_agent_in_the_image_has_a_compiled_protobuf(root: Path) -> None:
    checked = chroot(root, "sh", "-c", "arcbox-agent check --json || true")  # there is no /proc
    findings = json.loads(checked)["findings"]
    assert [finding["detail"] for finding in findings if finding["name"] == "protobuf"] == ["compiled"]
