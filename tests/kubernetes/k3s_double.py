"""A test double of the `k3s` command around the real components of Kubernetes 1.20: k3s itself can't be had here.

The command line, the kubeconfig, TLS on the port of the API, the node, its pods and what they leave on the machine are
as with k3s. It is not one process: the components are its children, which die with it. There is no CoreDNS, Traefik,
load balancer or metrics server. The components are in the directory that $KUBERNETES_COMPONENTS names.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

COMPONENTS = os.environ["KUBERNETES_COMPONENTS"]
CLUSTER = "10.42.0.0/16"
PODS = "10.42.0.0/24"
SERVICES = "10.43.0.0/16"
API_SERVICE = "10.43.0.1"

KUBECONFIG = """\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {ca}
    server: https://127.0.0.1:{port}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {{}}
users:
- name: default
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"""


class Certificates:
    """An authority, and what it has signed. All components are administrators here."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.ca = self._make("ca", "/CN=k3s-double", "keyUsage=critical,keyCertSign")
        hosts = f"DNS:localhost,IP:127.0.0.1,IP:{API_SERVICE},IP:{node_ip()},DNS:{socket.gethostname()}"
        self.server = self._make(
            "server", "/CN=kubernetes", f"extendedKeyUsage=serverAuth\nsubjectAltName={hosts}", signed=True
        )
        self.admin = self._make(
            "admin", "/O=system:masters/CN=system:admin", "extendedKeyUsage=clientAuth", signed=True
        )

    def key(self, name: str) -> str:
        path = self.directory / f"{name}.key"
        if not path.exists():
            openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
        return str(path)

    def _make(self, name: str, subject: str, extensions: str, *, signed: bool = False) -> str:
        path, request, config = (self.directory / f"{name}.{suffix}" for suffix in ("crt", "csr", "cnf"))
        if not path.exists():
            ca = "CA:FALSE" if signed else "critical,CA:TRUE"
            config.write_text(f"basicConstraints={ca}\n{extensions}\n")
            openssl("req", "-new", "-key", self.key(name), "-subj", subject, "-out", request)
            signer = ("-CA", self.ca, "-CAkey", self.key("ca")) if signed else ("-signkey", self.key(name))
            serial = ("-set_serial", str(time.time_ns()))
            openssl("x509", "-req", "-in", request, *signer, *serial, "-days", "365", "-extfile", config, "-out", path)
        return str(path)

    def kubeconfig(self, port: int) -> str:
        files = {"ca": self.ca, "certificate": self.admin, "key": self.key("admin")}
        encoded = {name: base64.b64encode(Path(path).read_bytes()).decode() for name, path in files.items()}
        return KUBECONFIG.format(port=port, **encoded)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603, S607  a test's own


def node_ip() -> str:
    """The address of the default route. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.1", 9))
        return str(asking.getsockname()[0])


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.rename(path)
    return path


class Server:
    """`k3s server`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.data: Path = options.data_dir
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.certificates = Certificates(self.data / "server/tls")
        self.config = write(
            self.data / "server/admin.kubeconfig", self.certificates.kubeconfig(options.https_listen_port)
        )

    def run(self) -> int:
        """Until a signal, or the end of a component."""
        ended: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: ended.append(number))
        self.start_control_plane()
        is_up = False
        while not ended:
            for name, child in self.children.items():
                if child.poll() is not None:
                    log(f"level=fatal {name} exited with {child.returncode}")
                    return 1
            if not is_up and self.api_is_ready():
                is_up = True
                self.start_node()
                write(
                    self.options.write_kubeconfig, self.config.read_text(), int(self.options.write_kubeconfig_mode, 8)
                )
                log("k3s is up and running")
            time.sleep(0.1)
        log(f"received {signal.Signals(ended[0]).name}")
        self.stop()
        return 0

    def start(self, program: str, *arguments: str) -> None:
        """Start a component, which the kernel kills when this process ends."""
        path = self.data / "log" / f"{program}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [program] if program == "etcd" else [f"{COMPONENTS}/hyperkube", program]
        with path.open("ab") as output:
            self.children[program] = subprocess.Popen(  # noqa: S603  a test's own
                ["/usr/bin/setpriv", "--pdeathsig", "KILL", *command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def stop(self) -> None:
        """End the components, the store last."""
        for child in reversed(self.children.values()):
            child.terminate()
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def start_control_plane(self) -> None:
        made, port = self.certificates, self.options.https_listen_port
        clients, peers = (f"http://127.0.0.1:{port + 1000 + offset}" for offset in (0, 1))
        self.start(
            "etcd",
            f"--data-dir={self.data}/server/db/etcd",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )
        self.start(
            "kube-apiserver",
            f"--advertise-address={node_ip()}",
            "--allow-privileged=true",
            "--anonymous-auth=false",
            "--api-audiences=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            f"--cert-dir={self.data}/server/tls",
            f"--client-ca-file={made.ca}",
            f"--etcd-servers={clients}",
            "--insecure-port=0",
            f"--kubelet-certificate-authority={made.ca}",
            f"--kubelet-client-certificate={made.admin}",
            f"--kubelet-client-key={made.key('admin')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--secure-port={port}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={made.key('service')}",
            f"--service-account-signing-key-file={made.key('service')}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--tls-cert-file={made.server}",
            f"--tls-private-key-file={made.key('server')}",
        )

    def api_is_ready(self) -> bool:
        made = self.certificates
        context = ssl.create_default_context(cafile=made.ca)
        context.load_cert_chain(made.admin, made.key("admin"))
        url = f"https://127.0.0.1:{self.options.https_listen_port}/readyz"
        try:
            with urllib.request.urlopen(url, context=context, timeout=5):
                return True
        except OSError:
            return False

    def start_node(self) -> None:
        """The controllers and what makes this machine a node."""
        made, name = self.certificates, socket.gethostname()
        access = f"--kubeconfig={self.config}"
        self.start(
            "kube-controller-manager",
            access,
            f"--cluster-cidr={CLUSTER}",
            "--leader-elect=false",
            "--port=0",
            f"--root-ca-file={made.ca}",
            "--secure-port=0",
            f"--service-account-private-key-file={made.key('service')}",
            f"--service-cluster-ip-range={SERVICES}",
        )
        self.start("kube-scheduler", access, "--leader-elect=false", "--port=0", "--secure-port=0")
        agent = self.data / "agent"
        self.write_network(agent)
        kubelet = {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": made.ca},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "evictionHard": {"nodefs.available": "1%"},
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "2s",
            "readOnlyPort": 0,
            "tlsCertFile": made.server,
            "tlsPrivateKeyFile": made.key("server"),
            "volumePluginDir": f"{agent}/plugins",
        }
        self.start(
            "kubelet",
            access,
            f"--config={write(agent / 'kubelet.json', json.dumps(kubelet))}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{self.options.container_runtime_endpoint}",
            f"--hostname-override={name}",
            f"--node-ip={node_ip()}",
            f"--root-dir={self.data.parents[1] / 'kubelet'}",
        )
        self.start(
            "kube-proxy",
            access,
            f"--cluster-cidr={CLUSTER}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-close-wait=0s",
            "--conntrack-tcp-timeout-established=0s",
            f"--hostname-override={name}",
            "--proxy-mode=iptables",
        )

    def write_network(self, agent: Path) -> None:
        """For containerd, which watches this directory."""
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        network = {"name": "cbr0", "cniVersion": "0.3.1", "plugins": plugins}
        write(agent / "etc/cni/net.d/10-flannel.conflist", json.dumps(network))


def log(text: str) -> None:
    print(f"time={time.strftime('%FT%TZ', time.gmtime())} {text}", file=sys.stderr, flush=True)  # noqa: T201  as k3s does


def main() -> int:
    """What this double knows of the command line of k3s; all else is an error, as there."""
    parser = argparse.ArgumentParser(prog="k3s", allow_abbrev=False)
    server = parser.add_subparsers(required=True).add_parser("server", allow_abbrev=False)
    server.add_argument("--container-runtime-endpoint", required=True)
    server.add_argument("--data-dir", type=Path, default=Path("/var/lib/rancher/k3s"))
    server.add_argument("--disable", action="append")
    server.add_argument("--https-listen-port", type=int, default=6443)
    server.add_argument("--write-kubeconfig", type=Path, default=Path("/etc/rancher/k3s/k3s.yaml"))
    server.add_argument("--write-kubeconfig-mode", default="0600")
    return Server(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
