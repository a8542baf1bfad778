"""Drift and what is due, in a namespace: told by the flows' own rooms; a claim stays."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.flows.collect import collect
from model_delivery.flows.deliver import deliver
from model_delivery.places.opening import Location
from model_delivery.verbs.drift import drift
from tests.cluster.control.lab import ENGINE, NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.waiting import until
from tests.unit.test_registry import Registry, running

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
OTHER = f"sha256:{'b' * 64}"


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def objects(lab: Lab) -> Any:
    """With their versions: whoever writes changes one."""
    kinds = "deployments,services,configmaps,persistentvolumeclaims,jobs"
    found = json.loads(lab.cluster.kubectl("get", kinds, "-n", lab.namespace, "-o", "json"))["items"]
    return {(one["kind"], one["metadata"]["name"]): one["metadata"]["resourceVersion"] for one in found}


def test_an_image_tag_that_moved_and_an_edit_are_told_apart_and_nothing_is_written(lab: Lab) -> None:
    with running(Registry()) as registry:
        image = f"{registry.host}/a/b:v1"
        lab.node.entrypoints[f"{registry.host}/a/b@{registry.digest}"] = lab.node.entrypoints[ENGINE]
        spec = lab.spec(gates=SMOKE_ONLY, target={"image": image})
        release = deliver.fn(spec)["release"]
        before = objects(lab)
        assert drift(lab.place, spec).result == "no drift"
        other = spec.model_copy(update={"serving": spec.serving.model_copy(update={"args": ("--label", "edited")})})
        assert drift(lab.place, other).result == "unknown"
        registry.status = 503
        assert drift(lab.place, spec).result == "unknown"
        registry.status, old, registry.digest = 200, registry.digest, OTHER
        (moved,) = drift(lab.place, spec).upstream
        assert (moved.part, moved.before[-64:], moved.now[-64:]) == ("image", old[-64:], OTHER[-64:])
        assert objects(lab) == before
        registry.digest = old
        lab.cluster.kubectl("label", f"deployment/{NAME}-{release}", "-n", lab.namespace, "team=x")
        assert any("team" in line for line in drift(lab.place, spec).live)
        lab.cluster.kubectl("delete", f"service/{NAME}", "-n", lab.namespace)
        seen = drift(lab.place, spec)
        assert (seen.result, seen.upstream) == ("drift: live", ())
        assert any(f"Service/{NAME}" in line for line in seen.live), seen.live


def test_collect_ends_a_standby_whose_time_is_over_and_leaves_claims_and_what_is_at_work(lab: Lab) -> None:
    first = deliver.fn(lab.spec(gates=SMOKE_ONLY))["release"]
    second = deliver.fn(lab.spec(gates=SMOKE_ONLY, rollout={"standby": "1s"}))["release"]
    until(lambda: (lab.record.stop_after or 0) < time.time(), 10, "the standby is not over")
    before = objects(lab)
    where = Location(namespace=lab.namespace)
    shown = collect.fn(where, dry_run=True)
    assert shown["items"] == [f"{NAME}: release {first}: its standby is over"]
    assert objects(lab) == before
    assert set(lab.running(lab.place.world(NAME))) == {first, second}
    assert collect.fn(where)["items"] == shown["items"]
    assert lab.running(lab.place.world(NAME)) == [second]
    claims = [name for kind, name in objects(lab) if kind == "PersistentVolumeClaim"]
    assert claims == [f"{NAME}-models"]
    assert collect.fn(where)["result"] == "nothing to remove"
