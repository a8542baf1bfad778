"""A release that serves and cannot run any more: it holds up neither its repair nor a
refusal.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model_delivery.base import GateFailed
from model_delivery.flows.deliver import deliver
from model_delivery.verbs.plan import plan
from model_delivery.verbs.status import status
from tests.cluster.control.lab import ENGINE, NAME, Lab
from tests.parts.cluster.waiting import until

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
REFUSED = {"smoke": {"max_tokens": 16, "expect": "what no model says"}, "throughput": None}
OTHER = f"registry.example/engine@sha256:{'3' * 64}"


@pytest.fixture
def broken(lab: Lab) -> Iterator[str]:
    """What serves; its image is gone since, and so are its pods."""
    release: str = deliver.fn(lab.spec(gates=SMOKE_ONLY))["release"]
    lab.node.entrypoints[OTHER] = lab.node.entrypoints.pop(ENGINE)
    selector = f"--selector=model-delivery/delivery={NAME},model-delivery/role=release"
    lab.cluster.kubectl("delete", "pods", selector, "-n", lab.namespace)
    until(lambda: status(lab.place, NAME).state != "up", 60, "it is still up")
    yield release
    lab.node.entrypoints[ENGINE] = lab.node.entrypoints.pop(OTHER)


def test_a_release_that_is_down_is_told_and_holds_up_neither_a_refusal_nor_its_repair(lab: Lab, broken: str) -> None:
    refused = lab.spec(gates=REFUSED, target={"image": OTHER})
    assert plan(lab.place, refused).down
    with pytest.raises(GateFailed, match="what no model says"):
        deliver.fn(refused)
    assert (lab.record.serving, lab.record.candidate) == (broken, None)
    repaired = deliver.fn(lab.spec(gates=SMOKE_ONLY, target={"image": OTHER}))
    assert (repaired["result"], status(lab.place, NAME).state) == ("promoted", "up")
