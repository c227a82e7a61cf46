"""Docker as a peer of benchmarks, where it can be had."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from bench import docker
from bench.processes import ServerFailedError

if TYPE_CHECKING:
    from pathlib import Path


def test_without_docker_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker.why_not() == "not installed: dockerd, containerd"


def test_a_daemon_that_ends_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    daemon = tmp_path / "dockerd"
    daemon.write_text("#!/bin/sh\necho no room for containers; exit 1\n")
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ServerFailedError, match="no room for containers"), docker.idle_container(tmp_path, tmp_path):
        pass


@pytest.mark.parametrize(("reply", "answers"), [(b"HTTP/1.0 200 OK\r\n\r\nOK", True), (b"HTTP/1.0 503 No\r\n", False)])
def test_a_daemon_is_there_once_it_answers_a_ping(tmp_path: Path, reply: bytes, answers: bool) -> None:  # noqa: FBT001

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        assert docker._answers(tmp_path / "socket") is answers
        thread.join()
    assert not docker._answers(tmp_path / "nowhere")
