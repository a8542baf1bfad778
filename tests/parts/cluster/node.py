"""The node tier (root, in a ``sealed`` namespace): a kubelet with containerd and runc,
kube-proxy, CoreDNS and an image registry.

Pods run; claims bind; Services and their names answer, also to the test itself.
containerd's store of images outlives the node (it is a cache, one node of a machine has
it at a time); everything else is below the node's folder or in its namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.images import push_pause
from tests.parts.cluster.provisioner import Provisioner
from tests.parts.cluster.registry import HOST as REGISTRY
from tests.parts.cluster.registry import PASSWORD, USER, Registry, running_registry
from tests.parts.cluster.sealed import UNSHARE, is_sealed
from tests.parts.golang import build, cache

NODE, ADDRESS, DNS = "node0", "192.0.2.10", "10.96.0.10"
SERVICES, PODS = "10.96.0.0/16", "10.244.0.0/24"
SOURCES = Path(__file__).parent
PROGRAMS = ("containerd", "runc", "ctr", "nft", "ip", "docker-registry", "buildah", "debootstrap")
COVERED = (
    *("/var/lib/kubelet", "/var/log/pods", "/var/log/containers", "/var/lib/cni", "/run/netns"),
    "/var/cache/model-delivery",
)


def missing() -> str:
    """Why this machine cannot run a node; empty: it can."""
    if os.geteuid() != 0:
        return "not root"
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    lacking += [] if Path("/usr/lib/cni/ptp").exists() else ["containernetworking-plugins"]
    if lacking:
        return f"no {', '.join(lacking)}"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


class Node(Cluster):
    """A cluster of one node; ``registry`` is where its images come from."""

    registry: Registry

    def ctr(self, *args: str) -> str:
        command = ["ctr", "--address", str(self.folder / "containerd.sock"), "--namespace", "k8s.io", *args]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"ctr {' '.join(args)}: {ended.stderr}")
        return ended.stdout

    def start_ground(self) -> None:
        """All that is needed before an image can be pulled."""
        self._cover()
        self._link()
        self.start()
        self.start_containerd()
        self.start_dns()

    def start_node(self) -> None:
        push_pause(self.registry)
        self.pull(PAUSE)
        self.start_kubelet()
        self.start_proxy()
        for state in ("create", "condition=Ready"):
            self.kubectl("wait", f"--for={state}", f"node/{NODE}", "--timeout=120s")

    def pull(self, reference: str) -> None:
        """Into containerd's store, past the kubelet."""
        shown = f"{USER}:{PASSWORD}"
        self.ctr("images", "pull", "--hosts-dir", str(self.folder / "registries"), "--user", shown, reference)

    def forget_image(self, reference: str) -> None:
        """Out of containerd's store, by each of its names."""
        names = [line.split() for line in self.ctr("images", "list").splitlines()]
        (digest,) = {words[2] for words in names if words[0] == reference}
        self.ctr("images", "remove", "--sync", *(words[0] for words in names if words[2] == digest))

    def _cover(self) -> None:
        """The folders that the kubelet and the rest cannot be told to leave alone are
        this namespace's own.
        """
        for path in map(Path, COVERED):
            path.mkdir(parents=True, exist_ok=True)
            run("mount", "-t", "tmpfs", "tmpfs", path)
        resolver = self.folder / "resolv.conf"
        resolver.write_text(f"nameserver {ADDRESS}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n")
        run("mount", "--bind", resolver, Path("/etc/resolv.conf").resolve())

    def _link(self) -> None:
        """A pair of interfaces with nobody at the other end: the node's address, and a
        default route for what is not of the cluster.
        """
        run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "nowhere")
        for name in ("uplink", "nowhere"):
            run("ip", "link", "set", name, "up")
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", "uplink")
        run("ip", "route", "add", "default", "dev", "uplink")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def start_containerd(self) -> None:
        folder, root = self.folder, cache() / "containerd"
        root.mkdir(parents=True, exist_ok=True)
        (folder / "cni").mkdir(exist_ok=True)
        (folder / "cni" / "pods.conflist").write_text(json.dumps(network(folder)))
        hosts = folder / "registries" / REGISTRY
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts.toml").write_text(
            f'server = "https://{REGISTRY}"\nca = "{self.authority.ca}"\n[host."https://{REGISTRY}"]\nca = "{self.authority.ca}"\n'
        )
        (folder / "containerd.toml").write_text(containerd(folder, root))
        self._run_containerd()
        if left := self.ctr(
            "containers", "list", "--quiet"
        ).split():  # of the node before; containerd knows them from its start
            self.ctr("containers", "delete", *left)
            self.programs.stop("containerd")
            self._run_containerd()

    def _run_containerd(self) -> None:
        self.programs.start("containerd", ["containerd", "--config", self.folder / "containerd.toml"])
        self.programs.wait_for("containerd", self._has_containerd)

    def _has_containerd(self) -> bool:
        command = ["ctr", "--address", str(self.folder / "containerd.sock"), "--timeout", "2s", "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def start_dns(self) -> None:
        (self.folder / "Corefile").write_text(corefile(self.kubeconfig))
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
        meta = {"name": "kube-dns", "namespace": "kube-system"}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"clusterIP": DNS, "ports": ports}}
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": meta | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
            "endpoints": [{"addresses": [ADDRESS]}], "ports": ports,
        }  # fmt: skip
        self.apply(service, endpoints)
        self.programs.start("dns", [build(SOURCES / "dns"), "-conf", "Corefile"])
        asked = ["getent", "ahostsv4", REGISTRY]
        self.programs.wait_for("dns", lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0)

    def start_kubelet(self) -> None:
        crt, key = self.authority.issue(NODE, f"system:node:{NODE}", ["system:nodes"], [NODE, ADDRESS])
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(self.authority.ca)}},
            "authorization": {"mode": "Webhook"}, "cgroupDriver": "cgroupfs",
            "failCgroupV1": False, "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{self.folder}/containerd.sock", "tlsCertFile": str(crt), "tlsPrivateKeyFile": str(key),
            "clusterDNS": [DNS], "clusterDomain": "cluster.local", "imageGCHighThresholdPercent": 100,
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
            "nodeStatusUpdateFrequency": "5s", "syncFrequency": "5s",
        }  # fmt: skip
        (self.folder / "kubelet.json").write_text(json.dumps(config))
        kubeconfig = self.kubeconfig_of("kubelet", user=f"system:node:{NODE}", groups=["system:nodes"])
        self.programs.start(
            "kubelet",
            [self.binary, "kubelet", "--config=kubelet.json", f"--kubeconfig={kubeconfig}", f"--hostname-override={NODE}",
             f"--node-ip={ADDRESS}"],
        )  # fmt: skip

    def start_proxy(self) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables", "clusterCIDR": PODS,
            "clientConnection": {"kubeconfig": str(self.kubeconfig)}, "hostnameOverride": NODE, "conntrack": {"maxPerCore": 0, "min": 0},
        }  # fmt: skip
        (self.folder / "proxy.json").write_text(json.dumps(config))
        self.programs.start("kube-proxy", [self.binary, "kube-proxy", "--config=proxy.json"])


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def network(folder: Path) -> dict[str, object]:
    """ptp, not bridge: every pod is routed, so that Services work between pods of one
    node without bridge netfilter.
    """
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "cni" / "data"),
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


def containerd(folder: Path, root: Path) -> str:
    """Without CAP_SYS_RESOURCE runc dies ("can't get final child's PID from pipe") unless
    oom_score_adj is restricted.
    """
    return f"""version = 2
root = "{root}"
state = "{folder}/containerd"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/registries"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""


def corefile(kubeconfig: Path) -> str:
    """Every name under ``test`` is the node's: the registry, and what a gateway
    serves.
    """
    return f""".:53 {{
  errors
  ready
  template IN A test {{
    answer "{{{{ .Name }}}} 5 IN A {ADDRESS}"
  }}
  template IN AAAA test {{
    rcode NOERROR
  }}
  cache 5
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} test
  }}
}}
"""


PAUSE = f"{REGISTRY}/pause:1"


@contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """A fresh cluster whose one node is Ready, for the length of the block; its logs stay
    in ``folder/log``.
    """
    if not is_sealed() or (why := missing()):
        raise RuntimeError(
            f"a node runs as root within tests.parts.cluster.sealed ({why if is_sealed() else 'not sealed'})"
        )
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "node.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        node = Node(
            folder, address=ADDRESS, services=SERVICES, port=6443,
            extra={
                "kube-apiserver": ("--endpoint-reconciler-type=lease", "--allow-privileged"),
                "kube-controller-manager": ("--allocate-node-cidrs", f"--cluster-cidr={PODS}"),
            },
        )  # fmt: skip
        try:
            node.start_ground()
            with running_registry(node, ADDRESS) as node.registry:
                node.start_node()
                with Provisioner(node):
                    yield node
        finally:
            node.programs.stop_all(grace=0)
            node.client.close()
