"""The `arcboxctl` command: checks that its dependencies are installed, then runs `arcbox_client.commands`."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

from arcbox_client._interrupts import end_at_ctrl_c


def main() -> None:
    """Run `arcboxctl` with the arguments of this process, and exit."""
    end_at_ctrl_c()
    for name in ("click", "rich", "yaml"):
        try:
            found = find_spec(name) is not None
        except ValueError:  # it was imported, and is None
            found = False
        if not found:
            sys.stderr.write(f"arcboxctl: {name} is not installed: pip install 'arcbox-agent[host]'\n")
            sys.exit(2)
    sys.exit(import_module("arcbox_client.commands").run(sys.argv[1:]))


if __name__ == "__main__":
    main()
