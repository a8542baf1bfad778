"""A delivery to the node tier: a hub over TLS with the cluster's own authority, the
registry with its password, and ``deliver`` as a user runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_delivery.places.cluster.place import Cluster as Place
from model_delivery.run.record import Record, load
from model_delivery.values import RECORD_REF
from model_delivery.verbs.status import status
from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.cluster.provisioner import folder_of
from tests.parts.gateway import running_gateway
from tests.parts.hubs.huggingface import HuggingFaceHub, running_hub
from tests.parts.kserve import running_kserve
from tests.parts.t9k import running_t9k

NAME = "small"
ELSEWHERE = ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "REQUESTS_CA_BUNDLE")
PULL: dict[str, Any] = {"image_pull_secrets": ["pull"]}


@dataclass
class Lab:
    node: Node
    namespace: str
    hub: HuggingFaceHub
    folder: Path
    images: Mapping[str, str]
    kind: str = "deployment"

    def spec(self, image: str, **more: Any) -> Path:
        """The file of a spec for ``image``; ``more`` goes over its sections, a level
        deep.
        """
        made: dict[str, Any] = {
            "apiVersion": "model-delivery/v1",
            "name": NAME,
            "model": {"source": "huggingface", "repo": "org/model"},
            "storage": {"claim": f"{NAME}-models", "size": "2Gi", "storage_class": "folders"},
            "serving": {"startup_timeout": "5m", "pod": PULL},
            "target": {"kind": self.kind, "namespace": self.namespace, "image": image},
            "runner": {"image": self.images["runner"], **PULL},
            "gates": {"smoke": {"max_tokens": 16}, "throughput": None},
            "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "0s"},
        }
        for name, section in more.items():
            made[name] = (
                made[name] | section if isinstance(made.get(name), dict) and isinstance(section, dict) else section
            )
        file = self.folder / "spec.yaml"
        file.write_text(yaml.safe_dump(made))
        return file

    def begin(self, *args: str | Path) -> subprocess.Popen[str]:
        """``deliver`` with ``args``, in a session of its own."""
        command = [str(Path(sys.executable).with_name("deliver")), *map(str, args)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def deliver(self, *args: str | Path, code: int = 0) -> str:
        """What ``deliver`` said; its exit code is ``code``."""
        with self.begin(*args) as run:
            said, _ = run.communicate()
        assert run.returncode == code, f"exit code {run.returncode}\n{said}"
        return said

    def volume(self) -> Path:
        """Where what its claim holds is on this machine."""
        (claim,) = self.there("pvc")
        return folder_of(json.loads(self.node.kubectl("get", "pv", claim["spec"]["volumeName"], "-o", "json")))

    def there(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """What kubectl shows of this delivery's namespace."""
        return list(
            json.loads(self.node.kubectl("get", kind, "-n", self.namespace, f"--selector={selector}", "-o", "json"))[
                "items"
            ]
        )

    @property
    def place(self) -> Place:
        return Place(None, self.namespace)

    @property
    def url(self) -> str:
        """Of the service, as ``status`` tells it."""
        found = status(self.place, NAME).url
        assert found
        return found

    @property
    def record(self) -> Record:
        seen = self.place.get(NAME, RECORD_REF)
        assert seen is not None
        return load(seen.resource.spec)


@contextmanager
def controller(node: Node, kind: str) -> Iterator[None]:
    """What makes pods of a target's objects: KServe's real manager, a stand-in for
    T9k's.
    """
    if kind == "deployment":
        yield
        return
    if kind == "kserve":
        with running_kserve(node):
            yield
        return
    with running_gateway(node, ADDRESS, 80) as gateway, node.namespace() as edge:
        node.apply(gateway.gateway(edge))
        with running_t9k(node, domain="ksvc.test", gateway=f"{edge}/gateway"):
            yield


@contextmanager
def running_lab(
    node: Node,
    folder: Path,
    model: Path,
    images: Mapping[str, str],
    kind: str = "deployment",
    level: str = "restricted",
) -> Iterator[Lab]:
    """In a namespace of its own with the pull secret ``pull``; it enforces the Pod
    Security level, of which Knative's pods would not pass the restricted one.
    """
    labels = {} if kind == "t9k" else {"pod-security.kubernetes.io/enforce": level}
    crt, key = node.authority.issue("hub", "hub.test", names=["hub.test"])
    certificate = folder / "hub.pem"
    certificate.write_text(key.read_text() + crt.read_text())
    with (
        node.namespace(**labels) as namespace,
        running_hub(model, certificate, (ADDRESS, "hub.test")) as hub,
        pytest.MonkeyPatch.context() as patch,
    ):
        node.apply(node.registry.pull_secret(namespace))
        for name in ELSEWHERE:
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("SSL_CERT_FILE", str(node.authority.ca))
        patch.setenv("KUBECONFIG", str(node.kubeconfig))
        patch.setenv("MODEL_DELIVERY_HOME", str(folder / "home"))
        yield Lab(node, namespace, hub, folder, images, kind)
