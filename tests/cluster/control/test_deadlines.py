"""The promise of diagnosis: what waiting cannot mend ends the wait within 10 s, from the
moment at which the cluster knew it. Two stamps of one clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from model_delivery.base import Permanent
from model_delivery.flows.deliver import deliver
from model_delivery.places.guarded import observed
from model_delivery.values import Ref
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
PROMISED = 10.0
ABSENT = f"registry.example/absent@sha256:{'3' * 64}"


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def ended_at(lab: Lab, says: str, *args: str, **more: Any) -> float:
    """When the wait for a release that cannot start was over (before it is withdrawn), in
    seconds since the epoch.
    """
    with pytest.raises(Permanent, match=says):
        deliver.fn(lab.spec(*args, gates=SMOKE_ONLY, **more))
    return lab.record.ended[-1].at


def known_at(lab: Lab) -> float:
    """When the played kubelet first had a container of the last engine in the state that
    ends the wait.
    """
    name = f"{NAME}-{lab.record.ended[-1].release}"
    return min(
        p.failed_at["engine"]
        for p in lab.node.players.values()
        if p.pod["metadata"]["labels"].get("model-delivery/object") == name
    )


def test_an_image_that_is_not_there(lab: Lab, cluster: Cluster) -> None:
    """The fetch Job's second container pulls it first: that is where it is told. A
    release without a fetch is told by its own pod.
    """
    end = ended_at(lab, "there is no image", target={"image": ABSENT})
    (begin,) = [
        p.failed_at["image"]
        for p in lab.node.players.values()
        if "image" in p.failed_at and p.pod["metadata"]["namespace"] == lab.namespace
    ]
    assert 0 <= end - begin <= PROMISED


def test_an_engine_that_crashes(lab: Lab) -> None:
    end = ended_at(lab, "exit code 2", "--no-such-flag")
    assert 0 <= end - known_at(lab) <= PROMISED


def test_a_quota_that_is_used_up(lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": lab.namespace}}
    cluster.apply(quota | {"spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    since: list[float] = []

    def note(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        """The condition's own stamp, in whole seconds, while the Deployment is still
        there.
        """
        listed = cluster.listed(f"/apis/apps/v1/namespaces/{lab.namespace}/deployments")
        conditions = [condition for one in listed for condition in one.get("status", {}).get("conditions", ())]
        failures = [one["lastTransitionTime"] for one in conditions if one["type"] == "ReplicaFailure"]
        since.extend(datetime.fromisoformat(stamp).timestamp() for stamp in failures)

    with observed(note):
        end = ended_at(lab, "quota is used up", serving={"resources": {"limits": {"nvidia.com/gpu": 2}}})
    assert 0 <= end - min(since) <= PROMISED
