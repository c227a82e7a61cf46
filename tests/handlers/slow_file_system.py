"""A FUSE file system with a file, `slow`, whose first read waits until it is told to go on. Run by a test.

    python slow_file_system.py DIRECTORY SIZE

Mounts itself on the directory; prints `mounted` or why not, `reading` when the first read comes, and `closed` when a
file that was opened is closed for good; answers the first read when a line comes in. After ten seconds it gives up
waiting, prints `gave up` and answers: whoever waits for the answer and can't give the word may live. Its other file,
`broken`, has a size and can be opened, and whatever is done to it then fails. Ends when it is unmounted. The structures
are those of linux/fuse.h, version 7.23.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import subprocess
import sys
from enum import IntEnum
from struct import Struct

IN_HEADER = Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
OUT_HEADER = Struct("=IiQ")  # length, error, unique
INIT_OUT = Struct("=IIIIHHII36x")  # major, minor, readahead, flags, background, congestion, max write, granularity
ATTRIBUTES = Struct("=QQQQQQIIIIIIIIII")  # inode, size, blocks, 3 times, 3 nanoseconds, mode, links, …, block size
ENTRY_OUT = Struct("=QQQQII")  # node, generation, validity of entry and attributes in seconds, in nanoseconds
ATTR_OUT = Struct("=QII")  # validity in seconds, nanoseconds, padding
OPEN_OUT = Struct("=QII")  # handle, flags, padding
READ_IN = Struct("=QQI")  # handle, offset, size

SLOW, BROKEN = 2, 3
"""The nodes of the files; the directory's is 1."""

NODES = {b"slow\0": SLOW, b"broken\0": BROKEN}

FOR_AN_HOUR = 3600
PATIENCE = 10  # seconds


class Op(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


ALWAYS: dict[int, bytes] = {
    Op.INIT: INIT_OUT.pack(7, 23, 0, 0, 0, 0, 4096, 1),
    Op.OPEN: OPEN_OUT.pack(0, 0, 0),
    Op.RELEASE: b"",
    Op.FLUSH: b"",
}
WITHOUT_REPLY = (Op.FORGET, Op.INTERRUPT, Op.BATCH_FORGET)


def content(size: int) -> bytes:
    """Bytes that are different in every page."""
    return b"".join(b"%07d\n" % number for number in range(size // 8))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def wait_for_the_word() -> None:
    say("reading")
    if select.select([sys.stdin], [], [], PATIENCE)[0]:
        sys.stdin.readline()
    else:
        say("gave up")


class FileSystem:
    def __init__(self, device: int, size: int) -> None:
        self.device = device
        self.content = content(size)
        self.has_waited = False

    def attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFREG | 0o444, len(self.content)) if node in NODES.values() else (stat.S_IFDIR | 0o555, 0)
        return ATTRIBUTES.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """The body of a reply, or an errno."""
        if opcode == Op.LOOKUP and body in NODES:
            return ENTRY_OUT.pack(NODES[body], 0, FOR_AN_HOUR, FOR_AN_HOUR, 0, 0) + self.attributes(NODES[body])
        if opcode == Op.GETATTR:
            return ATTR_OUT.pack(FOR_AN_HOUR, 0, 0) + self.attributes(node)
        if node == BROKEN and opcode in (Op.READ, Op.FLUSH):
            return errno.EIO
        if opcode == Op.READ:
            _handle, offset, size = READ_IN.unpack_from(body)
            if not self.has_waited:
                self.has_waited = True
                wait_for_the_word()
            return self.content[offset : offset + size]
        if opcode == Op.RELEASE:
            say("closed")
        if opcode in ALWAYS:
            return ALWAYS[opcode]
        return errno.ENOENT if opcode == Op.LOOKUP else errno.ENOSYS

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 17)
            except OSError as failure:
                if failure.errno == errno.ENODEV:  # it was unmounted
                    return
                raise
            _length, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            if opcode in WITHOUT_REPLY:
                continue
            answer = self.answer(opcode, node, request[IN_HEADER.size :])
            error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            os.write(self.device, OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)


def main(directory: str, size: int) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,ro"
    mount = ["mount", "-i", "-t", "fuse.arcbox-test", "arcbox-test", directory, "-o", options]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True, pass_fds=[device])  # noqa: S603  ours
    if mounted.returncode != 0:
        say(f"FUSE can't be mounted here: {mounted.stderr.strip()}")
        return
    say("mounted")
    FileSystem(device, size).serve()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
