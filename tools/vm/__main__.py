"""`python -m tools.vm image` builds the guest image, `run` boots it with its console here, `figures` measures in it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from subprocess import CalledProcessError

import trio

from tools.vm.figures import print_figures
from tools.vm.image import Image, image
from tools.vm.qemu import Machine, running


def main() -> int:
    """Carry out one command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.vm", description=__doc__)
    parser.add_argument("command", choices=("image", "run", "figures"))
    parser.add_argument("--pid1", action="store_true", help="with the agent as PID 1, in place of systemd")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="of the guest; default: 1024")
    options = parser.parse_args()
    try:
        built = image()
    except CalledProcessError as error:
        print(f"the guest image can't be built: {error}", file=sys.stderr)
        return 1
    if options.command == "image":
        print(built.disk, built.kernel, built.initrd, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="arcbox-vm-") as directory:
        if options.command == "figures":
            trio.run(print_figures, Path(directory))
            return 0
        return trio.run(_run, built, Path(directory), options)


async def _run(built: Image, directory: Path, options: argparse.Namespace) -> int:
    machine = Machine(
        image=built,
        directory=directory,
        init="/usr/bin/arcbox-agent" if options.pid1 else "/sbin/init",
        memory_mib=options.memory,
        console=True,
    )
    async with running(machine) as vm:
        print("The console is here (Ctrl-A X switches off). From another terminal:")
        print(f"  .venv/bin/arcboxctl --connect '{vm.address}' ping")
        return await vm.wait()


sys.exit(main())
