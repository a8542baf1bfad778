"""The whole way to KServe on a real control plane: the real manager with its webhooks, played pods; and what it hides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delivery import service
from delivery.record import TargetKey
from flows.deliver import deliver
from flows.rollback import rollback
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.kserve import KServe, running_kserve

GATES = {"smoke": {"max_tokens": 16}, "throughput": None}


@pytest.fixture(scope="module")
def kserve(cluster: Cluster, node: PlayedNode) -> Iterator[KServe]:
    with running_kserve(cluster) as made:
        yield made


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode, kserve: KServe) -> Iterator[Lab]:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind="kserve", **restricted) as made:
        yield made


def live(lab: Lab, what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.cluster.kubectl("get", what, "-n", lab.namespace, "-o", "json"))
    return found


def test_a_model_is_delivered_again_and_rolled_back(lab: Lab) -> None:
    spec = lab.spec()
    first = deliver.fn(spec)
    assert first["result"] == "promoted"
    assert first["url"] == f"http://{NAME}.{lab.namespace}.svc:8000"
    import os

    if os.environ.get("DUMP"):
        Path(os.environ["DUMP"]).write_text(
            lab.cluster.kubectl(
                "get",
                "isvc,servingruntimes,deployments,pods,services,hpa,ingress,endpointslices",
                "-n",
                lab.namespace,
                "-o",
                "yaml",
                "--show-managed-fields",
            )
            + lab.cluster.kubectl("get", "events", "-n", lab.namespace)
        )
    again = deliver.fn(spec)
    assert (again["result"], again["release"]) == ("unchanged", first["release"])
    second = deliver.fn(lab.spec())
    assert second["result"] == "promoted"
    place = lab.place
    world = place.world(NAME)
    release = f"{NAME}-{second['release']}"
    ours = {str(ref) for ref, seen in world.objects.items() if seen.resource.role == "release"}
    assert ours == {f"InferenceService/{release}", f"ServingRuntime/{release}"}
    status = service.status(place, NAME)
    assert (status.state, status.changes) == ("up", ())
    back = rollback.fn(NAME, first["release"], where=TargetKey(kind="kserve", namespace=lab.namespace))
    assert back["release"] == first["release"]
    assert service.down(place, NAME)
    assert {ref.kind for ref in place.world(NAME).objects} <= {"Record", "Release", "ConfigMap", "PersistentVolumeClaim"}
