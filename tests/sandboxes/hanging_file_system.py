"""A FUSE file system that answers nothing but questions about its root directory. Run by a test.

    python hanging_file_system.py DIRECTORY

Mounts itself on the directory, and prints `mounted`, or why not. See linux/fuse.h, version 7.23.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from struct import pack, unpack_from

GETATTR, INIT = 3, 26
ROOT = pack("=QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
ANSWERS = {
    INIT: pack("=IIIIHHII36x", 7, 23, 0, 0, 0, 0, 4096, 1),
    GETATTR: pack("=QII", 3600, 0, 0) + ROOT,
}


def main(directory: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    mount = ["mount", "-i", "-t", "fuse.arcbox-hang", "arcbox-hang", directory, "-o", options]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True, pass_fds=[device])  # noqa: S603  ours
    sys.stdout.write(mounted.stderr or "mounted\n")
    sys.stdout.flush()
    while True:
        _length, opcode, unique = unpack_from("=IIQ", os.read(device, 1 << 17))
        if opcode in ANSWERS:
            os.write(device, pack("=IiQ", 16 + len(ANSWERS[opcode]), 0, unique) + ANSWERS[opcode])


if __name__ == "__main__":
    main(sys.argv[1])
