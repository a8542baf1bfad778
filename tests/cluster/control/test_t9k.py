"""The whole way to T9k on a real control plane: its API from the public manuals, a stand-in for its controller, played pods."""

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
from tests.parts.t9k import StandIn, running_t9k

GATES = {"smoke": {"max_tokens": 16}, "throughput": None}


@pytest.fixture(scope="module")
def t9k(cluster: Cluster, node: PlayedNode) -> Iterator[StandIn]:
    with running_t9k(cluster) as made:
        yield made


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode, t9k: StandIn) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind="t9k") as made:
        yield made


def live(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.cluster.kubectl("get", "mls", NAME, "-n", lab.namespace, "-o", "json"))
    return found


def test_a_model_is_delivered_again_and_rolled_back(lab: Lab) -> None:
    spec = lab.spec()
    first = deliver.fn(spec)
    assert first["result"] == "promoted"
    now = live(lab)
    assert (now["spec"]["default"], [one["name"] for one in now["spec"]["releases"]]) == (first["release"], [first["release"]])
    assert first["url"] == now["status"]["address"]["url"] == service.status(lab.place, NAME).url
    again = deliver.fn(spec)
    assert (again["result"], again["release"]) == ("unchanged", first["release"])
    second = deliver.fn(lab.spec(rollout={"strategy": "canary", "steps": [10, 50], "soak": "0s"}))
    assert second["result"] == "promoted"
    assert [one["name"] for one in live(lab)["spec"]["releases"]] == [second["release"]]
    world = lab.place.world(NAME)
    assert {ref.kind for ref, seen in world.objects.items() if seen.resource.role in ("release", "route")} == {
        "MLService",
        "MLServiceRuntime",
    }
    assert service.status(lab.place, NAME).changes == ()
    back = rollback.fn(NAME, first["release"], where=TargetKey(kind="t9k", namespace=lab.namespace))
    assert back["release"] == first["release"]
    assert service.down(lab.place, NAME)
    assert not [ref for ref in lab.place.world(NAME).objects if ref.kind in ("MLService", "MLServiceRuntime")]
