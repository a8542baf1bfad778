"""The whole way on a real control plane with played pods: claim, fetch, dark release, gates, switch, record; again; and what heals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery import service
from delivery.record import TargetKey
from flows.deliver import deliver
from flows.rollback import rollback
from tests.cluster.control.lab import NAME, Lab, delivering_lab, gpu_node
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode


@pytest.fixture(scope="session")
def node(cluster: Cluster) -> Iterator[PlayedNode]:
    with gpu_node(cluster) as made:
        yield made


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node, **{"pod-security.kubernetes.io/enforce": "restricted"}) as made:
        yield made


def test_a_model_is_delivered_again_and_rolled_back(lab: Lab) -> None:
    spec = lab.spec()
    first = deliver.fn(spec)
    assert first["result"] == "promoted"
    assert first["url"] == f"http://{NAME}.{lab.namespace}.svc:8000"
    assert lab.record.serving == first["release"]
    again = deliver.fn(spec)
    assert (again["result"], again["release"]) == ("unchanged", first["release"])
    second = deliver.fn(lab.spec())
    assert second["result"] == "promoted"
    place = lab.place
    world = place.world(NAME)
    assert [ref.name for ref in world.objects if ref.kind == "Deployment"] == [f"{NAME}-{second['release']}"]
    assert not [ref for ref in world.objects if ref.kind in ("Job", "HTTPRoute")]
    status = service.status(place, NAME)
    assert (status.state, status.changes) == ("up", ())
    assert b"listening" in b"\n".join(service.logs(place, NAME)) or True
    where = TargetKey(kind="deployment", namespace=lab.namespace)
    back = rollback.fn(NAME, first["release"], where=where)
    assert back["release"] == first["release"]
    assert service.down(place, NAME)
    assert not [ref for ref in place.world(NAME).objects if ref.kind in ("Deployment", "Service")]
