"""Runs on a real node that are killed with SIGKILL at five named moments, on each target;
the next run of the same spec ends them.

``MODEL_DELIVERY_MOMENTS`` bounds how many are played (seeded; default: all fifteen).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model_delivery.spec import load_spec
from tests.cluster.control.killed import Event, run
from tests.cluster.node.lab import NAME, Lab, controller, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.waiting import until
from tests.parts.sampling import SEED, sampled
from tests.parts.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(600)
MAIN = {"deployment": "Deployment", "t9k": "MLService", "kserve": "InferenceService"}
MOMENTS: dict[str, Event] = {
    "after the record's write": ("after", "put", "Record/*"),
    "in the fetch Job": ("after", "put", "Job/*-fetch-*"),
    "before the switch": ("before", "put", "ROUTE"),
    "after the switch": ("after", "put", "ROUTE"),
}
WITHDRAWING = "while it withdraws"
SAMPLE = [
    (kind, moment)
    for at, kind in enumerate(MAIN)
    for moment in sampled((*MOMENTS, WITHDRAWING), stories=len(MAIN), seed=SEED + at)
]


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    folder = tmp_path_factory.mktemp(f"killed-{request.param}")
    with (
        controller(node, request.param),
        running_lab(node, folder, tiny_model(folder / "model"), pushed, request.param) as made,
    ):
        first = run("deliver", arguments(made, "serving"))
        assert first.code == 0, first.said
        yield made


def arguments(lab: Lab, label: str, **smoke: str) -> dict[str, object]:
    gates = {"smoke": {"max_tokens": 16, **smoke}, "throughput": None}
    file = lab.spec(lab.images["engine"], serving={"args": ["--label", label]}, gates=gates)
    return {"spec": load_spec(file).model_dump(mode="json")}


def at(lab: Lab, moment: Event) -> tuple[Event, int]:
    """On t9k the route is the MLService, which a run writes for a dark release too: its
    second write is the switch, where something serves.
    """
    when, verb, pattern = moment
    t9k = lab.kind == "t9k" and pattern == "ROUTE"
    return (when, verb, pattern.replace("ROUTE", f"MLService/{NAME}" if t9k else f"Service/{NAME}")), 2 if t9k else 1


def alone(lab: Lab, serving: str) -> bool:
    """Its object, and pods of no other release."""
    there = lab.there(f"{MAIN[lab.kind].lower()}s", f"model-delivery/delivery={NAME}")
    if lab.kind == "t9k":
        names = [entry["name"] for one in there for entry in one["spec"]["releases"]]
    else:
        names = [
            one["metadata"]["name"].removeprefix(f"{NAME}-")
            for one in there
            if "ownerReferences" not in one["metadata"]
        ]
    return names == [serving] and {
        one["metadata"]["labels"]["model-delivery/release"] for one in lab.there("pods", "model-delivery/role=release")
    } == {serving}


def converged(lab: Lab, serving: str) -> None:
    record = lab.record
    assert (record.candidate, record.serving) == (None, serving)
    until(lambda: alone(lab, serving), 60, "another release stays")
    assert not lab.there("leases")


@pytest.mark.parametrize(("lab", "moment"), SAMPLE, indirect=["lab"])
def test_a_killed_delivery_is_ended_by_the_next_run(lab: Lab, moment: str) -> None:
    serving = lab.record.serving
    assert serving
    withdraws = moment == WITHDRAWING
    wanted = arguments(lab, moment.replace(" ", "-").replace("'", ""), **({"expect": "Atlantis"} if withdraws else {}))
    gone = "MLServiceRuntime" if lab.kind == "t9k" else MAIN[lab.kind]
    event, number = (("before", "delete", f"{gone}/*"), 1) if withdraws else at(lab, MOMENTS[moment])
    assert run("deliver", wanted, event, number).code is None
    again = run("deliver", wanted)
    assert again.code == (4 if withdraws else 0), again.said
    converged(lab, serving if withdraws else again.said["release"])
    assert not lab.there("jobs")
