"""What a deletion removes of files; tests/kubernetes has whole deletions, on nodes of their own."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from arcbox_guest import linux
from arcbox_guest.errors import GuestError
from arcbox_guest.kubernetes import cleanup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def mounted(target: Path) -> Iterator[None]:
    """A file system with one file, for as long as the context lasts."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    target.mkdir(parents=True)
    linux.mount("tmpfs", str(target), "tmpfs", 0, "")
    try:
        (target / "file").touch()
        yield
    finally:
        with suppress(OSError):
            linux.unmount(str(target), linux.MNT_DETACH)


def test_directories_are_emptied_and_no_link_is_followed(tmp_path: Path) -> None:
    elsewhere, kubelet = tmp_path / "elsewhere", tmp_path / "kubelet"
    (elsewhere / "directory").mkdir(parents=True)
    (elsewhere / "kept").touch()
    (kubelet / "deep/er").mkdir(parents=True)
    (kubelet / "deep/er/file").touch(0o400)
    (kubelet / "deep").chmod(0o500)
    for name, target in (
        ("link", elsewhere),
        ("of-file", elsewhere / "kept"),
        ("loop", kubelet),
        ("none", tmp_path / "x"),
    ):
        (kubelet / name).symlink_to(target)
        (kubelet / "deep/er" / name).symlink_to(target)
    cleanup._empty_directories([kubelet, tmp_path / "absent"])
    assert list(kubelet.iterdir()) == []
    assert {path.name for path in elsewhere.iterdir()} == {"directory", "kept"}


def test_what_is_mounted_in_a_directory_that_is_a_link_is_unmounted(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk/pods/volume"):
        (tmp_path / "kubelet").symlink_to(tmp_path / "disk")
        cleanup._empty_directories([tmp_path / "kubelet"])
        assert list((tmp_path / "disk").iterdir()) == []


def test_files_of_a_mount_that_can_not_be_undone_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_target: str, _flags: int) -> None:
        raise OSError

    volume = tmp_path / "pods/volume"
    with mounted(volume), monkeypatch.context() as patch:
        patch.setattr(linux, "unmount", fail)
        with pytest.raises(GuestError, match=f"{volume} can't be unmounted"):
            cleanup._empty_directories([tmp_path])
        assert (volume / "file").exists()
