"""The runtime's program in memory: it can't be changed, and the runtime takes it for the copy that it would make."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from arcbox_guest.sandboxes.model import ExecSpec
from arcbox_guest.sandboxes.oci.runtime import SealedProgram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.sandboxes.oci.conftest import Boxes, World


@pytest.fixture
def sealed() -> Iterator[SealedProgram]:
    sealed = SealedProgram.of(shutil.which("true") or "")
    assert sealed is not None
    yield sealed
    sealed.close()


def test_it_is_the_program(sealed: SealedProgram) -> None:
    path = shutil.which("true")
    assert path is not None
    assert Path(sealed.path).read_bytes() == Path(path).read_bytes()
    assert subprocess.run([sealed.path], check=False).returncode == 0  # noqa: S603


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_nobody_can_change_it(sealed: SealedProgram, flags: int) -> None:
    before = Path(sealed.path).read_bytes()
    with pytest.raises(PermissionError):  # noqa: PT012  opening may already fail, or only writing
        descriptor = os.open(sealed.path, flags)
        try:
            os.write(descriptor, b"#!/bin/sh\n")
        finally:
            os.close(descriptor)
    assert Path(sealed.path).read_bytes() == before


def test_a_script_is_executed_from_where_it_lies(tmp_path: Path) -> None:
    script = tmp_path / "runtime"
    script.write_text("#!/bin/sh\n")
    assert SealedProgram.of(str(script)) is None


def test_where_memory_can_not_be_executed_the_program_is_executed_from_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str, flags: int) -> int:  # as with vm.memfd_noexec = 2
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert SealedProgram.of(shutil.which("true") or "") is None


@pytest.mark.parametrize("technique", ["crun"], indirect=True)  # runc copies itself for a moment that can't be seen
async def test_the_runtime_executes_it_without_copying_itself_again(boxes: Boxes, world: World) -> None:
    box = await boxes()
    program = os.stat((await world.driver._equip()).runtime._program)
    async with world.driver.process(box.id, ExecSpec(argv=("cat",))) as process:
        await process.send_stdin(b"it runs\n")
        assert bytes(await process.stdout.receive()) == b"it runs\n"
        executed = []
        for child in psutil.Process().children():
            with suppress(FileNotFoundError):  # it has ended
                executed.append(os.stat(f"/proc/{child.pid}/exe"))
    assert [(file.st_dev, file.st_ino) for file in executed].count((program.st_dev, program.st_ino)) == 1
