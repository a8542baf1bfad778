"""The control-plane tier: a real etcd, API server, controllers and scheduler on loopback,
for any user.

No kubelet runs: a test plays nodes and pods through the API (``played``).
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx

from tests.parts.cluster.authority import ISSUER, Authority
from tests.parts.cluster.programs import Programs
from tests.parts.cluster.waiting import until
from tests.parts.golang import build
from tests.parts.ports import own_port

SOURCES = Path(__file__).parent


def kube() -> Path:
    """The program that is etcd, the control plane, the kubelet, kube-proxy and
    kubectl.
    """
    found = re.search(
        r"^(?:require )?\s*k8s\.io/kubernetes v(1\.(\d+)\.\d+)$",
        (SOURCES / "kube" / "go.mod").read_text(),
        re.MULTILINE,
    )
    assert found
    version = "k8s.io/component-base/version"
    return build(
        SOURCES / "kube",
        {f"{version}.gitVersion": f"v{found[1]}", f"{version}.gitMajor": "1", f"{version}.gitMinor": found[2]},
    )


@dataclass
class Cluster:
    """``kubeconfig`` is the administrator's; ``client`` speaks to the API as the
    administrator too.

    Pods and Services of a control plane on loopback get addresses that no other one's
    have, made from its port.
    """

    folder: Path
    address: str = "127.0.0.1"
    services: str = ""
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)
    port: int = field(default_factory=own_port)

    def __post_init__(self) -> None:
        self.programs = Programs(self.folder)
        self.programs.end_leftovers()
        self.authority = Authority(self.folder / "pki")
        self.binary = kube()
        self.url = f"https://{self.address}:{self.port}"
        self.subnet = f"10.{self.port >> 8}.{self.port & 255}"
        self.services = self.services or f"{self.subnet}.128/25"
        names = [
            "localhost",
            "kubernetes.default.svc",
            "127.0.0.1",
            self.address,
            str(next(ip_network(self.services).hosts())),
        ]
        self.authority.issue("apiserver", "kube-apiserver", names=list(dict.fromkeys(names)))
        self.kubeconfig = self.kubeconfig_of("admin", groups=["system:masters"])
        admin = self.authority.folder / "admin.crt"
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        context.load_cert_chain(admin, admin.with_suffix(".key"))
        self.client = httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=30)

    def kubeconfig_of(
        self,
        name: str,
        *,
        user: str | None = None,
        groups: Sequence[str] = (),
        token: str | None = None,
        namespace: str = "default",
    ) -> Path:
        """The file of a user (default: called ``name``) who shows a certificate with
        these groups, or a token.
        """
        if token is None:
            crt, key = self.authority.issue(name, user or name, groups)
            shown: dict[str, Any] = {"client-certificate": str(crt), "client-key": str(key)}
        else:
            shown = {"token": token}
        context = {"cluster": "test", "user": name, "namespace": namespace}
        file = self.folder / f"{name}.kubeconfig"
        file.touch(mode=0o600)
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {"server": self.url, "certificate-authority": str(self.authority.ca)},
                        }
                    ],
                    "users": [{"name": name, "user": shown}],
                    "contexts": [{"name": "test", "context": context}],
                }
            )
        )
        return file

    def token(self, namespace: str, account: str, seconds: float) -> str:
        """A token of a service account that the API server refuses after ``seconds`` (at
        most 10 s later).
        """
        found = self.client.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}").raise_for_status().json()
        owner = {"namespace": namespace, "serviceaccount": {"name": account, "uid": found["metadata"]["uid"]}}
        return self.authority.token(
            {"sub": f"system:serviceaccount:{namespace}:{account}", "kubernetes.io": owner}, seconds
        )

    def kubectl(self, *args: str, input: str | None = None) -> str:  # noqa: A002
        """What it printed; RuntimeError with what it said when it failed."""
        ended = subprocess.run(
            [self.binary, "kubectl", "--kubeconfig", self.kubeconfig, *args],
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"kubectl {' '.join(args)}: {ended.stderr}")
        return ended.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Server-side, as a foreign field manager."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "--field-manager", "test", "-f", "-", input=json.dumps(listed))

    def listed(self, path: str, **selectors: str) -> list[dict[str, Any]]:
        """The objects at ``path``, from the API server's cache: what a part that looks
        ten times a second should ask. httpx.HTTPError.
        """
        answer = self.client.get(path, params={"resourceVersion": "0", **selectors}).raise_for_status()
        return list(answer.json()["items"])

    @contextmanager
    def namespace(self, **labels: str) -> Iterator[str]:
        """A fresh one, with its ``default`` service account; deleted at the end (not
        waited for).
        """
        name = f"t-{secrets.token_hex(4)}"
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.client.post("/api/v1/namespaces", json=made).raise_for_status()
        needed = [
            f"/api/v1/namespaces/{name}/{one}" for one in ("serviceaccounts/default", "configmaps/kube-root-ca.crt")
        ]
        until(
            lambda: all(self.client.get(path).is_success for path in needed),
            60,
            f"namespace {name} got no service account",
        )
        try:
            yield name
        finally:
            self.client.delete(f"/api/v1/namespaces/{name}").raise_for_status()

    def start(self) -> None:
        self.start_etcd()
        self.start_apiserver()
        self.start_controllers()

    def start_etcd(self) -> None:
        socket = "unix://etcd.sock:1"
        self.programs.start(
            "etcd",
            [self.binary, "etcd", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn", "--listen-peer-urls=unix://etcd-peer.sock:1",
             "--initial-advertise-peer-urls=unix://etcd-peer.sock:1", "--initial-cluster=default=unix://etcd-peer.sock:1",
             f"--listen-client-urls={socket}", f"--advertise-client-urls={socket}"],
        )  # fmt: skip

    def start_apiserver(self) -> None:
        """Start it (again, after ``programs.stop("kube-apiserver", grace=0)``) and return
        when it is ready.
        """
        pki = self.authority.folder
        self.programs.start(
            "kube-apiserver",
            [self.binary, "kube-apiserver", "--etcd-servers=unix://etcd.sock:1", f"--bind-address={self.address}", f"--secure-port={self.port}",
             "--advertise-address=192.0.2.10", "--endpoint-reconciler-type=none", f"--service-cluster-ip-range={self.services}",
             f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key", f"--client-ca-file={pki}/ca.crt",
             f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
             f"--service-account-issuer={ISSUER}", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
             f"--kubelet-client-certificate={pki}/admin.crt", f"--kubelet-client-key={pki}/admin.key",
             f"--kubelet-certificate-authority={pki}/ca.crt", "--kubelet-preferred-address-types=InternalIP", "--profiling=false",
             *self.extra.get("kube-apiserver", ())],
        )  # fmt: skip
        self.programs.wait_for("kube-apiserver", self.is_ready)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/readyz", timeout=2).is_success
        except httpx.TransportError:
            return False

    def start_controllers(self) -> None:
        pki = self.authority.folder
        common = [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
        self.programs.start(
            "kube-controller-manager",
            [self.binary, "kube-controller-manager", *common, f"--service-account-private-key-file={pki}/sa.key",
             f"--root-ca-file={pki}/ca.crt", f"--cluster-signing-cert-file={pki}/ca.crt",
             f"--cluster-signing-key-file={pki}/ca.key", "--enable-hostpath-provisioner", *self.extra.get("kube-controller-manager", ())],
        )  # fmt: skip
        self.programs.start(
            "kube-scheduler", [self.binary, "kube-scheduler", *common, *self.extra.get("kube-scheduler", ())]
        )
