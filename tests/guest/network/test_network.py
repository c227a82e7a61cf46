"""Links of sandboxes, in a network namespace of the test's own."""

from __future__ import annotations

import subprocess
import sys

ONE_TAKEN_OVER = """
import socket, subprocess, trio
from arcbox_guest.network.network import NetworkSettings, SandboxNetwork
from arcbox_guest.runtime.containers import ContainerWatch
from arcbox_guest.runtime.docker_api import DockerApi

former, network = (SandboxNetwork(NetworkSettings(), ContainerWatch(DockerApi("/nowhere"))) for _ in range(2))
lease = former.lease("box")
subprocess.run(["ip", "link", "add", lease.link, "type", "veth"], check=True)
network.claim("box", lease)
print(lease.link in dict(map(reversed, socket.if_nameindex())))
trio.run(network.release, "box")
print(lease.link in dict(map(reversed, socket.if_nameindex())))
"""


def test_the_link_of_a_sandbox_that_was_taken_over_goes_with_it() -> None:
    command = ["unshare", "--net", sys.executable, "-c", ONE_TAKEN_OVER]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=50)  # noqa: S603  our own interpreter
    assert done.stdout == b"True\nFalse\n"
