"""Sandboxes from OCI images that are made here, without any network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client.errors import BadRequestError
from tests.sandboxes.conftest import make_image

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("skopeo", "umoci"))), reason="needs Debian's skopeo and umoci"
)


@pytest.fixture
def image(rootfs: Path, tmp_path: Path) -> str:
    return make_image(rootfs, tmp_path)


async def test_an_image_s_command_runs_as_its_configuration_says(
    machine: Machine, client: AgentClient, image: str
) -> None:
    await client.sandbox_create("box", image=image)
    await machine.until(client, "box", "running")
    script = "until [ -s said ]; do sleep 0.01; done; cat said; echo $GREETING; id -un"
    async with client.sandbox_exec("box", ["sh", "-c", script]) as session:
        assert (await session.collect()).stdout == b"hello from /tmp by nobody\nhello\nnobody\n"


async def test_many_sandboxes_share_an_image_and_none_sees_another_s_files(
    machine: Machine, client: AgentClient, image: str
) -> None:
    for name in ("one", "two"):
        await client.sandbox_create(name, image=image, cmd=["touch /tmp/mine; sleep 1000"])
        await machine.until(client, name, "running")
    async with client.sandbox_exec("one", ["sh", "-c", "echo x > only-here"]) as session:
        assert await session.wait() == 0
    async with client.sandbox_exec("two", ["test", "-e", "only-here"]) as session:
        assert await session.wait() == 1
    store = machine.directory / "sandboxes/store"
    assert len(list((store / "images").iterdir())) == 1


async def test_an_image_that_can_not_be_had_makes_the_sandbox_failed_with_the_reason(
    machine: Machine, client: AgentClient, image: str
) -> None:
    await client.sandbox_create("box", image=f"{image}-not")
    await machine.until(client, "box", "failed")
    assert "busybox-not" in (await client.sandbox_inspect("box")).error
    await client.sandbox_remove("box")


async def test_what_is_no_reference_and_an_image_beside_a_rootfs_are_refused(client: AgentClient, image: str) -> None:
    with pytest.raises(BadRequestError, match="no image reference"):
        await client.sandbox_create("box", image="a b")
    with pytest.raises(BadRequestError, match="an image and a rootfs"):
        await client.sandbox_create("box", image=image, rootfs="/srv")


async def test_images_are_shown_pulled_and_removed_in_the_guest(
    machine: Machine, client: AgentClient, image: str
) -> None:
    (config,) = machine.directory.glob("agent-*/agent.toml")

    async def arcbox_agent(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "arcbox_agent", "image", *arguments, "--config", str(config)]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout.decode()

    code, digest = await arcbox_agent("pull", image)
    assert (code, digest[:7]) == (0, "sha256:")
    await client.sandbox_create("box", image=image)
    await machine.until(client, "box", "running")
    await machine.until_recorded("box")
    _, listing = await arcbox_agent("ls")
    assert listing.splitlines()[1].split()[:2] == [image, digest[7:19]]
    code, output = await arcbox_agent("rm", image)
    assert code == 1
    assert "is used by a sandbox" in output
    await client.sandbox_remove("box", force=True)
    assert await arcbox_agent("rm", digest[7:19]) == (0, "")
    assert await arcbox_agent("rm", image) == (1, f"arcbox-agent: there is no image '{image}'\n")
