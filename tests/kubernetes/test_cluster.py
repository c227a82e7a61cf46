"""A real one-node cluster through its life, and Docker beside it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from arcbox_client import connect

if TYPE_CHECKING:
    from tests.kubernetes.conftest import Guest

pytestmark = pytest.mark.kubernetes


async def test_a_cluster_is_started_stopped_adopted_killed_deleted_and_begun_anew(real_guest: Guest) -> None:
    guest = real_guest
    with guest.agent() as agent:
        async with connect(agent.address) as client:
            await guest.start_docker(client)
            bystander = await guest.run_bystander()
            before = await guest.traces()

            await guest.start_cluster(client)
            await guest.run_pod("one")
            pod = await guest.pod("one")
            assert await guest.traces() != before

            assert (await client.kubernetes_stop()).stopped
            assert not (await client.kubernetes_status()).running
            await guest.start_cluster(client)
            await guest.run_pod("after-the-stop")  # then the node knows its pods again
            assert await guest.pod("one") == pod  # the same container, never restarted

            await guest.kill_k3s()
            await guest.until_ready()
            await guest.run_pod("after-the-kill")
            assert await guest.pod("one") == pod
        assert agent.pid is not None
        k3s = guest.k3s()
        os.kill(agent.pid, signal.SIGKILL)

    with guest.agent() as agent:
        async with connect(agent.address) as client:
            status = await client.kubernetes_status()
            assert (status.running, status.api_ready) == (True, True)
            assert guest.k3s() == k3s
            assert await guest.pod("one") == pod
            await client.kubernetes_delete()
            assert await guest.traces() == before
            assert await guest.state_files() == []
            assert await guest.bystander(bystander.id) == bystander

            await guest.start_cluster(client)
            assert await guest.kubectl("get", "pods", "--output=name") == ""
            await guest.run_pod("one")
            await client.kubernetes_delete()
            assert await guest.traces() == before
            assert await guest.bystander(bystander.id) == bystander
