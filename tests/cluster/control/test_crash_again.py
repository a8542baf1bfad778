"""Crashes that are not followed by a quiet rerun of the same: of a canary behind a
gateway, a second one in the recovery, and another spec after one.

``MODEL_DELIVERY_MOMENTS`` bounds how many moments are taken (seeded; default: all of
them).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_delivery.run.lease import REF
from model_delivery.spec import DeliverySpec
from model_delivery.targets.kubernetes.kinds import HTTP_ROUTE
from model_delivery.values import Ref
from model_delivery.verbs.status import status
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.cluster.control.test_crash import converged, deliver, jobs, moments, served, spec
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.waiting import until
from tests.parts.gateway import StandIn
from tests.parts.sampling import SEED


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def canary(lab: Lab) -> DeliverySpec:
    behind = {"gateway": "gateway", "hostname": "chat.test"}
    return spec(lab, target=behind, rollout={"strategy": "canary", "steps": [10, 50], "soak": "0s"})


def settled(lab: Lab, serving: str) -> None:
    """One release serves, alone, with all of the route's weight; nothing is left to
    change, no lease, no step.
    """
    record, world = lab.record, lab.place.world(NAME)
    assert (record.candidate, record.serving) == (None, serving)
    assert [ref.name for ref in world.objects if ref.kind.name == "Deployment"] == [f"{NAME}-{serving}"]
    backends = world.objects[Ref(HTTP_ROUTE, NAME)].resource.spec["spec"]["rules"][0]["backendRefs"]
    assert [(one["name"], one["weight"]) for one in backends] == [(f"{NAME}-{serving}", 100)]
    until(lambda: not jobs(lab), 30, "a step's Job that was deleted does not go")
    assert lab.place.get(NAME, REF) is None
    assert status(lab.place, NAME).changes == ()


@pytest.mark.timeout(3600)
def test_a_killed_canary_converges_on_the_rerun(lab: Lab, cluster: Cluster, gateway: StandIn) -> None:
    cluster.apply(gateway.gateway(lab.namespace))
    first = deliver(canary(lab))
    assert first.code == 0, first.said
    whole = deliver(canary(lab))
    assert whole.code == 0, whole.said
    assert sum(event == ("after", "put", f"HTTPRoute/{NAME}") for event in whole.events) == 5, (
        "dark, 10 %, 50 %, all, alone"
    )
    for at in moments(whole):
        wanted = canary(lab)
        assert deliver(wanted, kill_at=at).code is None, f"no effect number {at}"
        again = deliver(wanted)
        assert again.code == 0, (whole.events[at], again.said)
        settled(lab, again.said["release"])


@pytest.mark.timeout(3600)
def test_a_second_crash_in_the_recovery_converges_too(lab: Lab) -> None:
    served(lab)
    whole = deliver(spec(lab))
    assert whole.code == 0, whole.said
    dice = random.Random(SEED)
    for at in moments(whole):
        wanted, then = spec(lab), dice.randrange(len(whole.events) // 2)
        assert deliver(wanted, kill_at=at).code is None, f"no effect number {at}"
        assert deliver(wanted, kill_at=then).code in (None, 0), "killed, or done before that many effects"
        last = deliver(wanted)
        assert last.code == 0, (whole.events[at], then, last.said)
        converged(lab, last.said["release"])


@pytest.mark.timeout(3600)
def test_another_spec_after_a_crash_takes_the_candidates_place(lab: Lab) -> None:
    served(lab)
    whole = deliver(spec(lab))
    assert whole.code == 0, whole.said
    for at in moments(whole):
        assert deliver(spec(lab), kill_at=at).code is None, f"no effect number {at}"
        other = deliver(spec(lab))
        assert other.code == 0, (whole.events[at], other.said)
        converged(lab, other.said["release"])
