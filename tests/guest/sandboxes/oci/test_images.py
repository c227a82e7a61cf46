"""Root file systems: directories and images."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_guest.errors import GuestError, InvalidArgumentError
from arcbox_guest.sandboxes.busybox import build
from arcbox_guest.sandboxes.model import BindMount
from arcbox_guest.sandboxes.oci.driver import OciDriver

if TYPE_CHECKING:
    from tests.guest.sandboxes.oci.conftest import Boxes, World


@pytest.fixture(params=["crun"])
def technique(request: pytest.FixtureRequest, technique: str) -> str:
    """One runtime: it does not see what the root file system is made of."""
    return technique


@pytest.fixture(params=["ext4", "squashfs", "erofs"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"image.{request.param}"
    build(path)
    return path


def loop_devices(image: Path) -> list[str]:
    """Those that an image is attached to."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return [str(file.parent.parent) for file in files if file.read_text().strip() == str(image)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_an_image_is_a_root_file_system_and_stays_as_it_is(boxes: Boxes, image: Path) -> None:
    before = digest(image)
    box = await boxes(rootfs=str(image))
    assert (await box.sh("echo new >/etc/new; rm /etc/hosts; cat /etc/new")).text == "new\n"
    assert (await box.run("id", user="nobody")).text.startswith("uid=65534(nobody)")
    await boxes.destroy()
    assert digest(image) == before


async def test_an_image_is_mounted_once_for_all_and_let_go_of_with_the_last(
    boxes: Boxes, world: World, image: Path
) -> None:
    one, other = await boxes("one", rootfs=str(image)), await boxes("other", rootfs=str(image))
    assert len(loop_devices(image)) == 1
    await world.driver.destroy("one")
    assert len(loop_devices(image)) == 1
    assert (await other.run("cat", "/etc/hosts")).exit_code == 0
    await world.driver.destroy("other")
    assert loop_devices(image) == []
    assert one.id != other.id


async def test_an_image_is_let_go_of_when_no_sandbox_came_of_it(boxes: Boxes, image: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="/proc/mine"):
        await boxes(rootfs=str(image), mounts=(BindMount(source="/etc", target="/proc/mine"),))
    assert loop_devices(image) == []


async def test_an_image_is_let_go_of_by_the_next_driver_and_by_the_same_one_again(
    boxes: Boxes, world: World, image: Path
) -> None:
    for following in (world.driver, OciDriver(world.driver.data_dir, world.driver.runtime)):
        await boxes(rootfs=str(image))
        await world.driver.close()
        world.driver = following
        await world.driver.destroy("box")
        assert world.leftovers() == []
        assert loop_devices(image) == []


async def test_a_file_that_took_the_place_of_another_is_another_image(boxes: Boxes, tmp_path: Path) -> None:
    image = tmp_path / "image.squashfs"
    build(image)
    old = await boxes("old", rootfs=str(image))
    directory = tmp_path / "tree"
    build(directory)
    (directory / "etc" / "new").write_text("new")
    newer = tmp_path / "newer.squashfs"
    subprocess.run(["mksquashfs", directory, newer, "-quiet", "-no-progress"], check=True)  # noqa: ASYNC221, S603, S607
    newer.rename(image)
    new = await boxes("new", rootfs=str(image))
    assert (await old.run("test", "-e", "/etc/new")).exit_code == 1
    assert (await new.run("cat", "/etc/new")).stdout == b"new"


async def test_an_image_that_is_deleted_serves_those_that_have_it(boxes: Boxes, image: Path) -> None:
    box = await boxes(rootfs=str(image))
    image.unlink()
    assert (await box.run("cat", "/etc/hosts")).exit_code == 0


async def test_an_image_behind_a_symbolic_link_will_do(boxes: Boxes, image: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(image)
    box = await boxes(rootfs=str(tmp_path / "current"))
    assert (await box.run("true")).exit_code == 0


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "fifo", "socket", "device", "a file below a file"])
async def test_what_is_no_root_file_system_is_an_error_that_says_so(boxes: Boxes, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rootfs.img"
    match kind:
        case "empty":
            path.touch()
        case "text":
            path.write_text("no file system " * 1000)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "device":
            path = Path("/dev/zero")
        case "a file below a file":
            (tmp_path / "file").touch()
            path = tmp_path / "file" / "rootfs"
    with pytest.raises(InvalidArgumentError, match=f"the root file system, {path}"):
        await boxes(rootfs=str(path))


async def test_an_image_that_ends_too_soon_is_an_error_and_leaves_no_device(boxes: Boxes, image: Path) -> None:
    os.truncate(image, 4096)
    with pytest.raises(GuestError):  # from mount(2), or from the runtime: erofs looks at what it needs when it needs it
        await boxes(rootfs=str(image))
    assert loop_devices(image) == []


async def test_a_root_file_system_without_the_usual_directories_gets_them(boxes: Boxes, tmp_path: Path) -> None:
    build(tmp_path / "full")
    bare = tmp_path / "bare"
    (bare / "bin").mkdir(parents=True)
    (tmp_path / "full" / "bin" / "busybox").rename(bare / "bin" / "busybox")
    box = await boxes(rootfs=str(bare))
    assert (await box.run("/bin/busybox", "ls", "/")).text.split() == ["bin", "dev", "etc", "proc", "sys"]
    assert sorted(path.name for path in bare.iterdir()) == ["bin"]


@pytest.mark.parametrize("path", ["/proc", "/sys", "/dev"])
async def test_a_root_file_system_can_not_lead_the_runtime_astray(boxes: Boxes, tmp_path: Path, path: str) -> None:
    """Its /proc and the like may be links that lead elsewhere: as in CVE-2019-19921 and CVE-2021-30465."""
    root, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    build(root)
    elsewhere.mkdir()
    (root / path.lstrip("/")).rmdir()
    (root / path.lstrip("/")).symlink_to(elsewhere)
    try:
        box = await boxes(rootfs=str(root))
    except GuestError:
        pass
    else:
        assert (await box.run("true")).exit_code in (0, 127)
    assert list(elsewhere.iterdir()) == []


async def test_odd_characters_in_the_path_of_the_root_file_system_are_only_that(boxes: Boxes, tmp_path: Path) -> None:
    root = tmp_path / "a:b,c=d\\e f\n"
    build(root)
    box = await boxes(rootfs=str(root))
    assert (await box.run("true")).exit_code == 0
