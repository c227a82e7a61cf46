"""Checkpoints of real sandboxes, and sandboxes that stack on them."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.sandboxes.model import BindMount
from arcbox_guest.sandboxes.oci import driver as driver_module
from arcbox_guest.sandboxes.oci.layers import Layers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.guest.sandboxes.oci.conftest import Box, Boxes, World

TREE = """
cd /srv && mkdir -p deep/er empty
echo data > deep/file; chmod 640 deep/file; chown 7:8 deep/file
ln deep/file deep/hard; ln -s ../nowhere deep/link; mkfifo deep/fifo
truncate -s 1G sparse; echo end >> sparse
chmod 1777 empty; touch -d 2001-02-03 empty
rm /etc/issue; rm -r /usr/share/doc; mkdir /usr/share/doc; touch /usr/share/doc/new
"""
"""A bit of everything that a layer can hold; /etc/issue and /usr/share/doc are in the root file system."""

LISTING = """
cd / && find srv usr/share -exec stat -c '%n %F %a %u %g %h %s %Y' {} + | sort; stat -c %b srv/sparse
find srv -type f -size -1000 -exec cat {} +; readlink srv/deep/link; ls etc/issue usr/share/doc/old 2>&1
"""


ATTRIBUTES = """
import os, struct
os.setxattr("/srv/deep/file", "user.note", b"of a file")
os.setxattr("/srv/deep", "user.note", b"of a directory")
os.setxattr("/srv/deep/file", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
"""
LIST_ATTRIBUTES = """
import os
for path in ("/srv/deep", "/srv/deep/file", "/srv/deep/hard", "/srv/empty"):
    print(path, {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))})
"""


@pytest.fixture
def rich_rootfs(world: World, tmp_path: Path) -> str:
    """One with things in it that a sandbox can remove."""
    (tmp_path / "rootfs/etc/issue").write_text("hello\n")
    (tmp_path / "rootfs/usr/share/doc").mkdir(parents=True)
    (tmp_path / "rootfs/usr/share/doc/old").write_text("old\n")
    (tmp_path / "rootfs/srv").mkdir(exist_ok=True)
    return world.rootfs


async def listing(box: Box, *, links: bool = True) -> str:
    return (await box.sh(LISTING if links else LISTING.replace(" %h", ""))).stdout.decode()


async def test_a_restored_sandbox_has_the_files_as_they_were(boxes: Boxes, world: World, rich_rootfs: str) -> None:
    origin = await boxes("origin", rootfs=rich_rootfs, with_python=True)
    assert (await origin.sh(TREE)).exit_code == 0
    assert (await origin.python(ATTRIBUTES)).exit_code == 0
    before, attributes = await listing(origin), (await origin.python(LIST_ATTRIBUTES)).text
    assert attributes.count("of a file") == 2
    assert attributes.count("security.capability") == 2
    layers = await world.driver.checkpoint("origin")
    assert await listing(origin) == before
    restored = await boxes("restored", rootfs=rich_rootfs, layers=layers, with_python=True)
    assert await listing(restored) == before
    assert (await restored.python(LIST_ATTRIBUTES)).text == attributes


async def test_its_origin_goes_on_and_each_restored_one_has_files_of_its_own(boxes: Boxes, world: World) -> None:
    origin = await boxes("origin")
    await origin.sh("echo common > /tmp/common")
    layers = await world.driver.checkpoint("origin")
    first, second = await boxes("first", layers=layers), await boxes("second", layers=layers)
    for box in (origin, first, second):
        assert (await box.sh("hostname > /tmp/own; hostname > /tmp/common; cat /tmp/own /etc/hostname")).text == (
            f"{box.id}\n{box.id}\n"
        )
    for box in (origin, first, second):
        assert (await box.sh("cat /tmp/common; ls /tmp")).text == f"{box.id}\ncommon\nown\n"
    third = await boxes("third", layers=layers)
    assert (await third.sh("cat /tmp/common; ls /tmp")).text == "common\ncommon\n"


async def test_what_is_mounted_in_a_sandbox_stays_so_and_so_does_its_init(
    boxes: Boxes, world: World, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    box = await boxes("box", mounts=(BindMount(source=str(tmp_path / "data"), target="/data", readonly=True),))
    mounts = "grep -v ' / / ' /proc/self/mountinfo | cut -d' ' -f5,6 | sort"
    before = (await box.sh(mounts)).text
    init = world.init("box")
    await world.driver.checkpoint("box")
    await world.driver.checkpoint("box")
    assert (await box.sh(mounts)).text == before
    assert world.init("box") == init
    assert (await box.sh("touch /data/x")).exit_code != 0
    (tmp_path / "data/late").write_text("late\n")
    assert (await box.sh("cat /data/late; echo $$ > /dev/shm/x; cat /proc/1/comm")).exit_code == 0


async def test_the_end_of_a_root_file_system_waits_for_no_write_back(boxes: Boxes, world: World) -> None:
    """Else whoever ends one, or gives it another one, waits for what anybody has written to the same disk."""
    box = await boxes("box")
    for _ in range(2):
        options = (await box.sh("grep ' / / ' /proc/self/mountinfo | sed 's/.* - overlay overlay //'")).text
        assert options.strip().endswith("volatile")  # or fsync=volatile, by the kernel
        await world.driver.checkpoint("box")


async def test_a_checkpoint_survives_its_origin_and_is_gone_when_nobody_has_it(boxes: Boxes, world: World) -> None:
    origin = await boxes("origin")
    await origin.sh("echo x > /tmp/x")
    layers = await world.driver.checkpoint("origin")
    await world.driver.destroy("origin")
    restored = await boxes("restored", layers=layers)
    await world.driver.remove_unused(list)
    assert (await restored.sh("cat /tmp/x")).text == "x\n"
    await world.driver.destroy("restored")
    await world.driver.remove_unused(lambda: layers)
    assert set(layers) == {path.name for path in (world.driver.data_dir / "layers").iterdir()}
    await world.driver.remove_unused(list)
    assert list((world.driver.data_dir / "layers").iterdir()) == []


@pytest.mark.parametrize("most", [1, 3])
async def test_a_chain_that_gets_long_is_merged_into_one_layer(
    boxes: Boxes, world: World, rich_rootfs: str, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(driver_module, "MANY_LAYERS", most)
    box = await boxes("box", rootfs=rich_rootfs)
    steps = (
        TREE,
        "rm -r /srv/deep",
        "mkdir -p /srv/deep; echo again > /srv/deep/file",
        "echo 1 > /etc/issue",
        "rm /etc/issue",
    )
    for step in steps:
        assert (await box.sh(step)).exit_code == 0
        before = await listing(box, links=False)
        layers = await world.driver.checkpoint("box")
        assert len(layers) <= most + 1
        assert await listing(box, links=False) == before
        layers = await world.driver.flatten(layers)
        assert len(layers) <= most
        restored = await boxes("restored", rootfs=rich_rootfs, layers=layers)
        assert await listing(restored, links=False) == before
        await world.driver.destroy("restored")
        await world.driver.remove_unused(partial(list, layers))
        assert await listing(box, links=False) == before


@pytest.mark.parametrize("technique", ["crun"], indirect=True)
async def test_a_checkpoint_beyond_the_longest_chain_waits_for_its_layers_to_be_merged(
    boxes: Boxes, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LONGEST_CHAIN", 10)
    box = await boxes("box")
    for number in range(30):
        if number % 5 == 0:
            await box.sh(f"echo {number} >> /tmp/log")
        assert len(await world.driver.checkpoint("box")) <= 11
    assert (await box.sh("cat /tmp/log")).text == "0\n5\n10\n15\n20\n25\n"


@pytest.mark.parametrize("technique", ["crun"], indirect=True)
async def test_layers_that_are_being_merged_are_nobody_s_garbage_and_nobody_waits_for_them(
    boxes: Boxes, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, begun, go_on = Layers.merge, threading.Event(), threading.Event()

    def slow(self: Layers, chain: Sequence[str], name: str) -> None:
        (self.directory / name).mkdir()
        begun.set()
        assert go_on.wait(30)
        merge(self, chain, name)

    monkeypatch.setattr(driver_module, "MANY_LAYERS", 1)
    monkeypatch.setattr(Layers, "merge", slow)
    box = await boxes("box")
    merged: list[tuple[str, ...]] = []
    await box.sh("echo 0 >> /tmp/log")
    await world.driver.checkpoint("box")
    await box.sh("echo 1 >> /tmp/log")
    layers = await world.driver.checkpoint("box")

    async def flatten() -> None:
        merged.append(await world.driver.flatten(layers))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flatten)
        await trio.to_thread.run_sync(begun.wait)
        await world.driver.remove_unused(lambda: layers)
        await world.driver.checkpoint("box")
        go_on.set()
    await world.driver.destroy("box")
    await world.driver.remove_unused(lambda: merged[0])
    restored = await boxes("restored", layers=merged[0])
    assert (await restored.sh("cat /tmp/log")).text == "0\n1\n"
    assert len(list((world.driver.data_dir / "layers").iterdir())) == 2


async def test_checkpoints_of_many_at_once_do_not_mix(boxes: Boxes, world: World) -> None:
    made = [await boxes(f"box-{number}") for number in range(5)]
    snapshots: dict[str, tuple[str, ...]] = {}

    async def checkpoint(box: Box) -> None:
        await box.sh("hostname > /tmp/name")
        snapshots[box.id] = await world.driver.checkpoint(box.id)

    async with trio.open_nursery() as nursery:
        for box in made:
            nursery.start_soon(checkpoint, box)
    for box in made:
        restored = await boxes(f"{box.id}-restored", layers=snapshots[box.id])
        assert (await restored.sh("cat /tmp/name")).text == f"{box.id}\n"
