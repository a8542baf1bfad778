"""A real gateway for the node tier: Contour (a Go module) and Envoy (PyPI), as processes
beside the kubelet.

Contour serves one Gateway, ``GATEWAY``; a class of its own is not needed for that. Port
80 of the node is a Service's, which leads to Envoy.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.environment import environment
from tests.parts.gateway import PATCH
from tests.parts.golang import build, module

SOURCES = Path(__file__).parent
MODULE, SPACE, NAME = "github.com/projectcontour/contour", "projectcontour", "gateway"
GATEWAY = f"{SPACE}/{NAME}"
API = "gateway.networking.k8s.io/v1"
XDS, HTTP = 8001, 8080
UNUSED = ("tlsroutes", "tcproutes", "backendtlspolicies")  # their kinds are not in the standard channel
CONTROLLER = "projectcontour.io/gateway-controller"
Object = dict[str, Any]


def contour() -> Path:
    """The program (needs the network, and some minutes, the first time)."""
    return build(SOURCES, package=f"{MODULE}/cmd/contour")


def envoy() -> Path:
    (program,) = environment("envoy", SOURCES / "requirements.txt").glob("lib/*/site-packages/envoy/_bin/envoy")
    return program


def gateway() -> Object:
    listener = {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}
    spec = {"gatewayClassName": "contour", "listeners": [listener]}
    return {"apiVersion": API, "kind": "Gateway", "metadata": {"name": NAME, "namespace": SPACE}, "spec": spec}


class Contour:
    def __init__(self, node: Node) -> None:
        self.node, self.folder = node, node.folder / "contour"
        self.folder.mkdir(exist_ok=True)

    def install(self) -> None:
        node, examples = self.node, module(SOURCES, MODULE) / "examples" / "contour"
        standard = module(SOURCES.parent / "gateway" / "crds", "sigs.k8s.io/gateway-api") / "config/crd/standard"
        for file in (*sorted(standard.glob("gateway*.yaml")), examples / "01-crds.yaml"):
            node.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
        node.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        for name in ("00-common.yaml", "02-role-contour.yaml", "02-rbac.yaml"):
            node.apply(*filter(None, yaml.safe_load_all((examples / name).read_text())))
        port = {"name": "http", "port": 80, "targetPort": HTTP}
        meta = {"name": "envoy", "namespace": SPACE}
        node.apply(
            {"apiVersion": API, "kind": "GatewayClass", "metadata": {"name": "contour"}, "spec": {"controllerName": CONTROLLER}},
            gateway(),
            {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": "LoadBalancer", "ports": [port]}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {**meta, "labels": {"kubernetes.io/service-name": "envoy"}},
             "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}], "ports": [{"name": "http", "port": HTTP}]},
        )  # fmt: skip
        path, at = f"/api/v1/namespaces/{SPACE}/services/envoy/status", {"ingress": [{"ip": ADDRESS}]}
        node.client.patch(path, headers=PATCH, json={"status": {"loadBalancer": at}}).raise_for_status()

    def start(self) -> None:
        """Returns when its Gateway is programmed."""
        token = self.node.token(SPACE, "contour", 86400)
        config = self.node.kubeconfig_of("contour", token=token, namespace=SPACE)
        settings, bootstrap = self.folder / "contour.yaml", self.folder / "envoy.json"
        settings.write_text(yaml.safe_dump({"gateway": {"gatewayRef": {"namespace": SPACE, "name": NAME}}}))
        environ = os.environ | {"CONTOUR_NAMESPACE": SPACE, "POD_NAME": "contour-0"}
        others = {"http": 8100, "health": 8101, "stats": 8102}
        self.node.programs.start(
            "contour",
            [contour(), "serve", f"--kubeconfig={config}", f"--config-path={settings}", "--insecure", "--disable-leader-election",
             "--xds-address=127.0.0.1", f"--xds-port={XDS}", *(f"--{name}-address=127.0.0.1" for name in others),
             *(f"--{name}-port={port}" for name, port in others.items()), *(f"--disable-feature={name}" for name in UNUSED)],
            environ,
        )  # fmt: skip
        ends = ["--xds-address=127.0.0.1", f"--xds-port={XDS}", f"--namespace={SPACE}"]
        admin = f"--admin-address={self.folder}/admin.sock"
        subprocess.run([contour(), "bootstrap", *ends, admin, bootstrap], check=True)
        named = ["--service-cluster", "contour", "--service-node", "node0"]
        self.node.programs.start(
            "envoy", [envoy(), "-c", bootstrap, *named, "--concurrency", "2", "--log-level", "warn"]
        )
        self.node.kubectl("wait", f"gateway/{NAME}", "-n", SPACE, "--for=condition=Programmed", "--timeout=60s")

    def stop(self) -> None:
        for name in ("envoy", "contour"):
            self.node.programs.stop(name)


@contextmanager
def running_contour(node: Node) -> Iterator[Contour]:
    """For the length of the block; its definitions stay, port 80 of the node does not."""
    made = Contour(node)
    made.install()
    made.start()
    try:
        yield made
    finally:
        made.stop()
        node.kubectl(
            "delete", f"gateway/{NAME}", "service/envoy", "-n", SPACE
        )  # port 80 of the node is another's again
