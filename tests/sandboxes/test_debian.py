"""A Debian as root file system works as people expect: packages, Python, users, services.

It is made once, in `$XDG_CACHE_HOME/arcbox-agent/debian`: that takes a mirror and a minute, so it has to be asked for
by the variable ARCBOX_TEST_DEBIAN.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

SUITE = "bookworm"
PACKAGES = "python3,cron,procps"

INSTALL = """
set -e
mkdir -p /repo/greeting/DEBIAN /repo/greeting/usr/bin
cd /repo/greeting
printf 'Package: greeting\\nVersion: 1\\nArchitecture: all\\nMaintainer: nobody <nobody@localhost>\\n' > DEBIAN/control
printf 'Depends: python3\\nDescription: a test\\n' >> DEBIAN/control
printf '#!/usr/bin/python3\\nimport json, ssl, sys\\nprint(json.dumps(sys.argv[1:]))\\n' > usr/bin/greeting
printf '#!/bin/sh\\nset -e\\nuseradd --system greeter\\n' > DEBIAN/postinst
chmod 755 usr/bin/greeting DEBIAN/postinst
cd /repo
dpkg-deb --build greeting greeting.deb
{ dpkg-deb --field greeting.deb
  echo "Filename: ./greeting.deb"
  echo "Size: $(stat -c %s greeting.deb)"
  echo "SHA256: $(sha256sum greeting.deb | cut -d' ' -f1)"
} > Packages
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d
echo 'deb [trusted=yes] file:/repo ./' > /etc/apt/sources.list
apt-get update
apt-get install --yes greeting
"""
"""A package in a repository of files, with a dependency and a script of its own, installed by apt."""

REMOVE = "apt-get purge --yes greeting && ! command -v greeting"


@pytest.fixture(scope="session")
def debian() -> str:
    """The root file system."""
    if not os.environ.get("ARCBOX_TEST_DEBIAN"):
        pytest.skip("made only if ARCBOX_TEST_DEBIAN is set")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs Debian's mmdebstrap")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arcbox-agent"
    target = cache / "debian"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as making:
            root = Path(making) / "root"
            command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={PACKAGES}", SUITE, str(root)]
            made = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  ours
            if made.returncode:
                pytest.skip(f"no Debian can be had here: {made.stderr.strip().splitlines()[-1]}")
            root.rename(target)
    return str(target)


@pytest.fixture
async def box(machine: Machine, client: AgentClient, debian: str) -> str:
    return await machine.ready(client, "debian", rootfs=debian, memory_mib=512)


async def sh(client: AgentClient, box: str, script: str) -> str:
    done = await client.run(box, ["bash", "-c", script])
    assert done.exit_code == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


@pytest.mark.timeout(600)
async def test_apt_installs_and_removes_a_package(client: AgentClient, box: str) -> None:
    await sh(client, box, INSTALL)
    assert await sh(client, box, "greeting a 'b c'; id -un greeter") == '["a", "b c"]\ngreeter\n'
    await sh(client, box, REMOVE)


@pytest.mark.timeout(600)
async def test_users_are_made_and_changed_to(client: AgentClient, box: str) -> None:
    await sh(client, box, "useradd --create-home someone && echo someone:secret | chpasswd")
    assert await sh(client, box, "su - someone -c 'id -un; pwd; touch own; stat -c %U own'") == (
        "someone\n/home/someone\nsomeone\n"
    )


@pytest.mark.timeout(600)
async def test_a_service_goes_on_after_the_command_that_started_it(client: AgentClient, box: str) -> None:
    await sh(client, box, "service cron start")
    assert "cron is running" in await sh(client, box, "service cron status")
    assert await sh(client, box, "pgrep --exact --count cron") == "1\n"
    await sh(client, box, "service cron stop")
    assert "cron is not running" in await sh(client, box, "service cron status || true")


@pytest.mark.timeout(600)
async def test_python_has_processes_threads_and_shared_memory(client: AgentClient, box: str) -> None:
    code = "import multiprocessing as m; print(sum(m.Pool(3).map(abs, range(-9, 0))), m.RLock().acquire())"
    assert await sh(client, box, f"python3 -c '{code}'") == "45 True\n"
