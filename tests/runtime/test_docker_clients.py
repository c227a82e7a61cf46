"""Docker's clients through the proxy, as people use them: nothing shows that it is there."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from functools import partial
from typing import TYPE_CHECKING

import psutil
import trio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.conftest import RuntimeHost

APART = "--network=none"
CONNECTIONS = 200

PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"

PYTHON_SDK = """
import docker
client = docker.from_env()
assert client.ping()
reads = ["sh", "-c", "echo out; read line; echo $line"]
container = client.containers.run("box", reads, network_mode="none", detach=True, stdin_open=True)
socket = container.attach_socket(params={"stdin": 1, "stream": 1})
socket._sock.sendall(b"typed\\n")
assert container.wait()["StatusCode"] == 0
print(container.logs().decode(), end="")
code, (stdout, stderr) = client.containers.run(
    "box", ["sleep", "1000"], network_mode="none", detach=True, name="sdk", auto_remove=True
).exec_run(["sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"], demux=True)
print(code, stdout, stderr)
client.containers.get("sdk").remove(force=True)
container.remove()
"""

TESTCONTAINERS = """
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy
container = DockerContainer("box").with_command("sh -c 'echo begun; sleep 1000'").with_kwargs(network_mode="none")
with container.waiting_for(LogMessageWaitStrategy("begun")) as running:
    print(running.exec(["echo", "inside"]))
"""


async def python(host: RuntimeHost, code: str) -> str:
    """What a program prints whose Docker is behind the proxy."""
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{host.directory}/agent.sock",
        "DOCKER_CONFIG": str(host.directory / "cli"),
        "TESTCONTAINERS_RYUK_DISABLED": "true",  # its image is not here
    }
    command = [sys.executable, "-c", code]
    done = await trio.run_process(command, env=environment, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return str(done.stdout, "utf-8")


async def test_build_copy_exec_attach_and_events_of_the_command_line(
    host: RuntimeHost, box: None, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM box\nCOPY data /data\nRUN cat /data > /copy\nCMD cat /copy\n")
    (tmp_path / "data").write_bytes(os.urandom(1 << 20))
    with host.agent():
        await host.docker("build", APART, "-t", "built", str(tmp_path))
        assert await host.docker("run", "--rm", APART, "built") == (tmp_path / "data").read_bytes()

        await host.docker("run", "-d", APART, "--name", "cli", "box", "sleep", "1000")
        await host.docker("cp", str(tmp_path / "data"), "cli:/tmp/data")
        with tarfile.open(fileobj=io.BytesIO(await host.docker("cp", "cli:/tmp/data", "-"))) as tar:
            copied = tar.extractfile("data")
            assert copied is not None
            assert copied.read() == (tmp_path / "data").read_bytes()
        written = os.urandom(1 << 20)
        assert await host.docker("exec", "-i", "cli", "cat", stdin=written) == written

        async with trio.open_nursery() as nursery:
            follow = host.docker_command("events", "--filter", "container=attached", "--format", "{{.Action}}")
            events = await nursery.start(partial(trio.run_process, follow, stdout=-1, check=False))
            script = "read line; echo got $line; cat"
            await host.docker("create", "-i", APART, "--name", "attached", "box", "sh", "-c", script)
            assert await events.stdout.receive_some() == b"create\n"
            await host.docker("start", "attached")
            assert await host.docker("attach", "attached", stdin=b"a line\nthe rest\n") == b"got a line\nthe rest\n"
            told = b""
            while b"die\n" not in told:
                told += await events.stdout.receive_some()
            assert b"start\n" in told
            events.terminate()
        await host.docker("rm", "-f", "cli", "attached")


async def test_docker_s_sdk_for_python(host: RuntimeHost, box: None) -> None:
    with host.agent():
        assert await python(host, PYTHON_SDK) == "out\ntyped\n3 b'to stdout\\n' b'to stderr\\n'\n"


async def test_testcontainers(host: RuntimeHost, box: None) -> None:
    with host.agent():
        assert "inside" in await python(host, TESTCONTAINERS)


async def test_many_connections_at_once_are_served_and_cost_no_memory_that_stays(host: RuntimeHost, box: None) -> None:
    with host.agent() as agent:
        await host.docker("version")
        process = psutil.Process(agent.pid)
        descriptors, resident = process.num_fds(), []
        for _ in range(4):
            await ping_at_once(host)
            await few_descriptors(process, descriptors)
            resident.append(process.memory_info().rss)
        assert resident[-1] - resident[0] < 4 << 20


async def few_descriptors(process: psutil.Process, before: int) -> None:
    """Wait until a process has hardly more than before: connections end after their clients' end, and it probes."""
    with trio.fail_after(10):
        while True:
            await trio.sleep(0.01)
            if process.num_fds() < before + CONNECTIONS / 10:
                return


async def ping_at_once(host: RuntimeHost) -> None:
    """Have many connections, and a reply on each while all of them are open."""
    answered = 0
    all_answered = trio.Event()

    async def ping() -> None:
        nonlocal answered
        async with await trio.open_unix_socket(str(host.directory / "agent.sock")) as stream:
            await stream.send_all(PING)
            reply = b""
            while not reply.endswith(b"OK"):
                piece = await stream.receive_some()
                assert piece
                reply += piece
            answered += 1
            if answered == CONNECTIONS:
                all_answered.set()
            await all_answered.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(ping)
