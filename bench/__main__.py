"""The command line: `python -m bench [--json] [--quick] [NAME...]`."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from bench import (
    connections,
    ensure,
    files,
    first_sandbox,
    memory,
    network,
    pings,
    proxies,
    report,
    runtime,
    sandbox_work,
    sandboxes,
    snapshots,
    start,
    system_info,
)
from bench.client import UnexpectedReplyError
from bench.processes import ServerFailedError
from bench.stage import Bench, Stage

if TYPE_CHECKING:
    from bench.figures import Figure

BENCHES = (
    Bench("pings", "one connection: round trip, pipelined", pings.measure),
    Bench("pings-unpinned", "the same, on whatever cores the scheduler chooses", pings.measure, pinned=False),
    Bench("connections", "16 and 256 connections at once", connections.measure_many),
    Bench("tail", "the slowest pings of 256 connections at once", connections.measure_tail),
    Bench("connect", "connect, ping, close", connections.measure_new),
    Bench("files", "MmapReadFile of 1 and 32 MiB", files.measure),
    Bench("system-info", "GetSystemInfo", system_info.measure),
    Bench("proxies", "the relay to the Docker API", proxies.measure),
    Bench("runtime", "containerd and dockerd: from the request to ready", runtime.measure),
    Bench("ensure", "EnsureRuntime in every state of the runtime", ensure.measure),
    Bench("start", "from exec to the first pong", start.measure),
    Bench("first-sandbox", "the slowest ping while the first sandbox is made", first_sandbox.measure),
    Bench("sandboxes", "sandboxes: create, run, output, many at once", sandboxes.measure),
    Bench("sandbox-work", "sandboxes: executions, files", sandbox_work.measure),
    Bench("snapshots", "checkpoint and restore of many files and of a large one", snapshots.measure),
    Bench("network", "sandboxes with a network", network.measure),
    Bench("memory", "resident memory, idle and with 1,000 idle connections", memory.measure),
)

_QUIET = 0.5
"""A load average above which something else runs that will be in the way."""


def main() -> None:
    """Measure what was asked for, or everything, and print it."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that servers and files go, too
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand connections at either end
    cores = os.sched_getaffinity(0)
    rounds, sample_seconds = (3, 0.01) if options.quick else (15, 0.05)
    load, _, _ = os.getloadavg()
    if load > _QUIET:
        print(f"This machine is busy (load average {load:.1f}): expect wide spreads.", file=sys.stderr)
    figures: list[Figure] = []
    try:
        for bench in BENCHES:
            if not options.names or bench.name in options.names:
                print(f"measuring {bench.name} ...", file=sys.stderr)
                with tempfile.TemporaryDirectory(prefix="arcbox-bench-") as directory:
                    stage = Stage(Path(directory), rounds, sample_seconds)
                    with stage.on({max(cores)} if bench.pinned else cores):
                        measured = bench.run(stage)
                figures += measured if bench.pinned else map(_not_pinned, measured)
    except (OSError, ServerFailedError, UnexpectedReplyError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(report.as_json(figures))
    else:
        print(f"Medians (and quartiles) of {rounds} interleaved rounds, both ends on core {max(cores)}:\n")
        print(report.as_table(figures))


def _not_pinned(figure: Figure) -> Figure:
    return attrs.evolve(figure, name=f"{figure.name}, not pinned", target=None)


def _options() -> argparse.Namespace:
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Speed and memory of the agent, each figure a ratio to a floor of the same run.",
        epilog="\n".join(["what can be measured:", *(f"  {bench.name:16} {bench.about}" for bench in BENCHES)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all quartiles")
    parser.add_argument("--quick", action="store_true", help="few and short rounds, to see that it works")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: everything)")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(names)}")
    return options


if __name__ == "__main__":
    main()
