"""Runs in the guest of a test, beside whatever is PID 1: carries out commands that the test sends over vsock.

One connection is one command: a line of JSON, `{"argv": [...], "input": "..."}`; the answer is one, too, `{"status":
0, "output": "..."}`, with stdout and stderr in one. It needs nothing but Python's standard library.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from contextlib import suppress

PORT = 1023
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def serve(connected: socket.socket) -> None:
    """Carry out the command of one connection."""
    with connected, connected.makefile("rw") as stream:
        request = json.loads(stream.readline())
        try:
            done = subprocess.run(
                request["argv"],
                input=request["input"].encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                env={"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **request["env"]},
            )
            answer = {"status": done.returncode, "output": done.stdout.decode(errors="replace")}
        except OSError as error:
            answer = {"status": 127, "output": str(error)}
        stream.write(json.dumps(answer) + "\n")


def listen() -> socket.socket:
    """Listen as soon as the kernel has vsock."""
    while True:
        with suppress(OSError):
            listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            listening.bind((socket.VMADDR_CID_ANY, PORT))
            listening.listen()
            return listening
        time.sleep(0.05)  # the module is not loaded yet: nothing tells when it is


def main() -> None:
    """Serve for ever, in a process of its own."""
    if os.fork():
        return
    os.setsid()
    os.chdir("/")
    listening = listen()
    while True:
        connected, _ = listening.accept()
        threading.Thread(target=serve, args=[connected], daemon=True).start()


if __name__ == "__main__":
    main()
