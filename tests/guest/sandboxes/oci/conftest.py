"""Real sandboxes, and short ways to run things in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import trio
from attrs import define, field, frozen

from arcbox_guest.sandboxes.model import BindMount, ExecSpec, ResourceLimits, Spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from arcbox_guest.sandboxes.driver import Driver, OutputStream
    from arcbox_guest.sandboxes.oci.driver import OciDriver


class World(Protocol):
    """That of oci_world.py."""

    driver: OciDriver
    rootfs: str

    def init(self, sandbox_id: str) -> int: ...

    def kill_init(self, sandbox_id: str) -> None: ...

    def cgroups(self) -> Iterator[Path]: ...

    def mounts(self) -> list[str]: ...

    def leftovers(self) -> list[str]: ...


@frozen
class Result:
    """What became of a process."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it wrote to stdout, of a process that had no reason to complain."""
        assert (self.exit_code, self.stderr) == (0, b"")
        return self.stdout.decode()


@define(eq=False)
class Box:
    """A sandbox."""

    driver: Driver
    id: str

    async def run(self, *argv: str, **options: Any) -> Result:  # noqa: ANN401  of an ExecSpec
        """Run a command to its end."""
        async with self.driver.process(self.id, ExecSpec(argv=argv, **options)) as process:
            await process.close_stdin()
            pieces: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, process.stdout, pieces["stdout"])
                if process.stderr is not None:
                    nursery.start_soon(_collect, process.stderr, pieces["stderr"])
                exit_code = await process.wait()
            return Result(exit_code, b"".join(pieces["stdout"]), b"".join(pieces["stderr"]))

    async def sh(self, script: str, **options: Any) -> Result:  # noqa: ANN401  of an ExecSpec
        """Run a script to its end."""
        return await self.run("sh", "-c", script, **options)

    async def python(self, code: str, **options: Any) -> Result:  # noqa: ANN401  of an ExecSpec
        """The same with the Python that runs this test, in a sandbox that was made with `with_python`."""
        return await self.run(sys.executable, "-I", "-S", "-c", code, **options)


async def _collect(output: OutputStream, pieces: list[bytes]) -> None:
    while piece := await output.receive():
        pieces.append(bytes(piece))


@define(eq=False)
class Boxes:
    """Makes sandboxes; all of them are gone after the test."""

    world: World
    _made: list[str] = field(init=False, factory=list)

    async def __call__(
        self,
        name: str = "box",
        *,
        memory_mib: int = 64,
        vcpus: int = 1,
        mounts: tuple[BindMount, ...] = (),
        with_python: bool = False,
        **spec: Any,  # noqa: ANN401
    ) -> Box:
        """A new sandbox."""
        spec.setdefault("rootfs", self.world.rootfs)
        mounts = (*mounts, *python_mounts()) if with_python else mounts
        self._made.append(name)
        await self.world.driver.create(
            Spec(id=name, limits=ResourceLimits(vcpus=vcpus, memory_mib=memory_mib), mounts=mounts, **spec)
        )
        return Box(self.world.driver, name)

    async def destroy(self) -> None:
        for name in self._made:
            await self.world.driver.destroy(name)


def python_mounts() -> Iterator[BindMount]:
    """What the Python that runs this test needs to run inside."""
    environment = Path(sys.executable).parent.parent
    for path in dict.fromkeys((str(environment), sys.base_prefix, "/lib", "/lib64", "/usr/lib")):
        if Path(path).exists():
            yield BindMount(source=path, target=path, readonly=True)


@pytest.fixture(params=["crun", "runc"])
def technique(request: pytest.FixtureRequest) -> str:
    """The runtimes; the driver in memory isolates nothing."""
    name = str(request.param)
    missing: str = _oci_world().missing(name)
    if missing:
        pytest.skip(missing)
    return name


@pytest.fixture
async def world(technique: str, tmp_path: Path) -> AsyncIterator[World]:
    async with _oci_world().open_world(technique, tmp_path) as world:
        yield world


@pytest.fixture
async def boxes(world: World) -> AsyncIterator[Boxes]:
    boxes = Boxes(world)
    yield boxes
    with trio.CancelScope(shield=True):
        await boxes.destroy()
    assert world.leftovers() == []


def _oci_world() -> Any:  # noqa: ANN401  a module
    """It lies beside the contract, which uses it as well."""
    import importlib.util  # noqa: PLC0415

    path = Path(__file__).parents[1] / "oci_world.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
