"""A stand-in for k3s, which can't be had here: its command line, kubeconfig, port and signals, and no Kubernetes.

What it does besides is named by the environment's K3S: deaf (ignores SIGTERM), broken (ends at once), mute (never
listens), forking (leaves a helper).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[2:])
manner = os.environ.get("K3S", "")
assert sys.argv[1] == "server"
print("k3s starts", flush=True)  # noqa: T201
if manner == "broken":
    sys.exit("level=fatal no such luck")
if manner == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if manner == "forking" and os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
Path(options["data-dir"]).mkdir(parents=True, exist_ok=True)
Path(options["write-kubeconfig"]).write_text("apiVersion: v1\nkind: Config\n")
listener = socket.socket()
if manner != "mute":
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(options.get("https-listen-port", "6443"))))
    listener.listen()
while True:
    time.sleep(600)
