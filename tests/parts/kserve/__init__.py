"""The real KServe controller manager, as a program of a test cluster: upstream's
definitions, rights, configuration and webhooks.

Its configuration is upstream's own, whose default mode is Knative, which is not there.
The API server calls its webhooks on loopback. ``MODEL_DELIVERY_KSERVE=0.20`` takes that
version.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.waiting import until
from tests.parts.golang import build, module
from tests.parts.ports import free_port

NEWER = os.environ.get("MODEL_DELIVERY_KSERVE") == "0.20"  # else 0.17
SOURCES = Path(__file__).parent / ("v0_20" if NEWER else "")
MODULE, NAMESPACE, ACCOUNT = "github.com/kserve/kserve", "kserve", "kserve-controller-manager"
DEFINITIONS = ("crd/full", "crd/full/clusterstoragecontainer")
HERE = ("ServiceAccount", "Role", "RoleBinding", "Service", "ConfigMap")  # kinds that live in a namespace
Object = dict[str, Any]


def manager() -> Path:
    """The program (needs the network, and some minutes, the first time)."""
    return build(SOURCES, package=f"{MODULE}/cmd/manager")


def documents(*folders: str) -> list[Object]:
    """Upstream's manifests directly in these folders below ``config``, put into the
    namespace ``kserve``.
    """
    files = [
        file for folder in folders for file in sorted((module(SOURCES, MODULE) / "config" / folder).glob("*.yaml"))
    ]
    found = [
        one
        for file in files
        if file.name != "kustomization.yaml"
        for one in yaml.safe_load_all(file.read_text())
        if one
    ]
    for one in found:
        if one["kind"] in HERE:
            one["metadata"]["namespace"] = NAMESPACE
        for subject in one.get("subjects", ()):
            subject["namespace"] = NAMESPACE
    return found


def webhooks(cluster: Cluster, port: int) -> list[Object]:
    """Upstream's, called at ``https://127.0.0.1:PORT`` instead of through a Service."""
    found = documents("webhook")
    for one in found:
        for hook in one.get("webhooks", ()):
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": cluster.authority.bundle}
    return [one for one in found if "webhooks" in one]


class KServe:
    """``stop`` is an outage of its controller and webhooks; ``start`` ends it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.port, self.probe, self.folder = cluster, free_port(), free_port(), cluster.folder / "kserve"

    def install(self) -> None:
        made = documents(*DEFINITIONS)
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *made)
        until(
            lambda: self._established(made),
            60,
            "its definitions are not established: without them the manager would end",
        )
        self.cluster.apply(*documents("rbac", "configmap"))
        certificates = self.folder / "k8s-webhook-server" / "serving-certs"
        certificates.mkdir(parents=True, exist_ok=True)
        for file, name in zip(
            self.cluster.authority.issue("kserve", "kserve", names=["127.0.0.1"]), ("tls.crt", "tls.key"), strict=True
        ):
            shutil.copy(file, certificates / name)

    def start(self) -> None:
        """As upstream's service account, so that a right which its role lacks would show;
        returns when its webhooks are called.
        """
        token = self.cluster.token(NAMESPACE, ACCOUNT, 86400)
        config = self.cluster.kubeconfig_of("kserve", token=token)
        environ = os.environ | {"KUBECONFIG": str(config), "POD_NAMESPACE": NAMESPACE, "TMPDIR": str(self.folder)}
        ports = [f"--webhook-port={self.port}", f"--health-probe-addr=127.0.0.1:{self.probe}", "--metrics-addr=0"]
        self.cluster.programs.start("kserve", [manager(), *ports], environ)
        self.cluster.programs.wait_for("kserve", self._answers)
        self.cluster.apply(*webhooks(self.cluster, self.port))
        until(self._validates, 30, "the API server does not call KServe's webhooks")

    def stop(self) -> None:
        self.cluster.programs.stop("kserve", grace=0)

    def _established(self, made: list[Object]) -> bool:
        names = {one["metadata"]["name"] for one in made}
        found = [
            one
            for one in self.cluster.listed("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
            if one["metadata"]["name"] in names
        ]
        told = [c for one in found for c in one.get("status", {}).get("conditions") or ()]
        return sum((c["type"], c["status"]) == ("Established", "True") for c in told) == len(names)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.probe}/readyz", trust_env=False, timeout=1).is_success
        except httpx.TransportError:
            return False

    def _validates(self) -> bool:
        """A name that only its validator refuses is refused by it."""
        bad = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "0"},
            "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "x"}]}},
        }
        path = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices?dryRun=All"
        told = self.cluster.client.post(path, json=bad).text
        return "denied the request" in told and "InferenceService" in told and "name" in told

    def close(self) -> None:
        """Its definitions stay: where they come and go, the garbage collector stands
        still for minutes.
        """
        hooks = [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in webhooks(self.cluster, self.port)]
        self.cluster.kubectl("delete", *hooks)
        self.stop()


@contextmanager
def running_kserve(cluster: Cluster) -> Iterator[KServe]:
    """For the length of the block; its definitions stay."""
    made = KServe(cluster)
    made.install()
    made.start()
    try:
        yield made
    finally:
        made.close()
