"""Kubernetes as its hosts ask for it: a real agent with a real containerd and dockerd, and a stand-in for k3s."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client import connect
from arcbox_client.errors import RequestFailedError
from tests.kubernetes.conftest import BOX

if TYPE_CHECKING:
    from tests.kubernetes.conftest import Guest

# What a cluster leaves on a machine, by hand. `elsewhere` is what it has only links to and mounts of.
LEFT_BEHIND = """
cd /var/lib
mkdir -p elsewhere kubelet/pods/a/secret kubelet/pods/a/volume kubelet/pods/b rancher/k3s/server/tls cni/networks
echo precious > elsewhere/kept
mount --bind kubelet kubelet  # as the kubelet does
mount -t tmpfs tmpfs kubelet/pods/a/secret
echo s > kubelet/pods/a/secret/token
mount --bind elsewhere kubelet/pods/a/volume
mount --bind -o ro rancher/k3s/server kubelet/pods/b
touch kubelet/pods/b.lock rancher/k3s/server/tls/key
chmod 400 rancher/k3s/server/tls/key
chmod 500 rancher/k3s/server/tls
ln -s /var/lib/elsewhere rancher/k3s/link
ln -s /var/lib/elsewhere/kept cni/link
ln -s / kubelet/root
for cgroup in /sys/fs/cgroup/memory /sys/fs/cgroup/pids; do mkdir -p $cgroup/kubepods/burstable/pod1; done
ip netns add cni-0815
ip link add cni0 type bridge
for tables in iptables ip6tables; do
    $tables -t nat -N KUBE-SERVICES
    $tables -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
    $tables -t nat -A POSTROUTING -m comment --comment 'name: "cbr0"' -j ACCEPT -o cni0
done
{ echo '*nat'
  seq -f ':KUBE-SVC-%016g - [0:0]' 2000
  seq -f '-A KUBE-SERVICES -p tcp -m comment --comment "default/service" -j KUBE-SVC-%016g' 2000
  echo COMMIT; } | iptables-restore --noflush
"""


async def test_a_deletion_removes_what_kubernetes_left_and_nothing_else(guest: Guest) -> None:
    with guest.agent() as agent:
        async with connect(agent.address) as client:
            await guest.start_docker(client)
            bystander = await guest.run_bystander()
            await guest.node.run("ip", "netns", "add", "of-others")
            before = await guest.traces()

            assert (await client.kubernetes_start()).detail == "k3s started"
            await guest.import_image()
            await guest.ctr("run", "--detach", "--cgroup=/kubepods/burstable/pod1/c", BOX, "pod")
            await guest.node.run("sh", "-ec", LEFT_BEHIND)
            assert await guest.traces() != before

            assert (await client.kubernetes_delete()).detail == "k3s and its data deleted"
            assert await guest.traces() == before
            assert await guest.state_files() == []
            assert guest.node.path("/var/lib/elsewhere/kept").read_text() == "precious\n"
            assert await guest.bystander(bystander.id) == bystander
            assert (await client.kubernetes_start()).detail == "k3s started"


async def test_many_connections_may_ask_for_anything_at_once(guest: Guest) -> None:
    """Each gets an answer that was true at some moment, and there is never more than one k3s."""
    with guest.agent() as agent:

        async def ask(operation: str) -> None:
            async with connect(agent.address) as client:
                await getattr(client, f"kubernetes_{operation}")()

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, ("start", "stop", "delete", "status")[number % 4])
        async with connect(agent.address) as client:
            assert (await client.kubernetes_start()).running
            assert (await guest.node.run("pgrep", "--count", "--full", "bin/k3s server")).strip() == "1"
            assert (await client.kubernetes_stop()).stopped
            assert (await guest.node.attempt("pgrep", "--full", "bin/k3s server")).returncode == 1


async def test_a_host_is_told_what_there_is(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K3S", "mute")
    with guest.agent() as agent:
        async with connect(agent.address) as client, trio.open_nursery() as nursery:
            with pytest.raises(RequestFailedError, match="no kubeconfig") as refused:
                await client.kubernetes_kubeconfig()
            assert refused.value.code == 404
            nursery.start_soon(client.kubernetes_start)
            while not (status := await client.kubernetes_status()).running:  # noqa: ASYNC110  it can only be asked
                await trio.sleep(0.01)
            assert (status.api_ready, status.detail) == (False, "starting")
            assert status.endpoint == "https://127.0.0.1:16443"
            services = [(service.name, service.status) for service in status.services]
            assert services == [("containerd", "ready"), ("k3s", "not_ready")]
            nursery.cancel_scope.cancel()
