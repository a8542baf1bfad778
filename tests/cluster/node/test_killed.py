"""Runs on a real node that are killed with SIGKILL at five named moments; the next run of the same spec ends them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from delivery.spec import load_spec
from tests.cluster.control.killed import Event, run
from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(600)
STABLE = f"Service/{NAME}"
MOMENTS: dict[str, Event] = {
    "after the record's write": ("after", "put", "Record/*"),
    "in the fetch Job": ("after", "put", "Job/*-fetch-*"),
    "before the switch": ("before", "put", STABLE),
    "after the switch": ("after", "put", STABLE),
}


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    folder = tmp_path_factory.mktemp("killed")
    with running_lab(node, folder, tiny_model(folder / "model"), pushed) as made:
        yield made


def arguments(lab: Lab, label: str, **smoke: str) -> dict[str, object]:
    gates = {"smoke": {"max_tokens": 16, **smoke}, "throughput": None}
    file = lab.spec(lab.images["engine"], serving={"args": ["--label", label]}, gates=gates)
    return {"spec": load_spec(file).model_dump(mode="json")}


def converged(lab: Lab, serving: str) -> None:
    record = lab.record
    assert (record.candidate, record.serving) == (None, serving)
    assert [one["metadata"]["name"] for one in lab.there("deployments")] == [f"{NAME}-{serving}"]
    assert {one["metadata"]["labels"]["model-delivery/release"] for one in lab.there("pods", "model-delivery/role=release")} == {serving}
    assert not lab.there("leases")
    assert not lab.there("jobs")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_delivery_is_ended_by_the_next_run(lab: Lab, moment: str) -> None:
    wanted = arguments(lab, moment.replace(" ", "-").replace("'", ""))
    assert run("deliver", wanted, MOMENTS[moment]).code is None
    again = run("deliver", wanted)
    assert again.code == 0, again.said
    converged(lab, again.said["release"])


def test_a_run_killed_while_it_withdraws_is_ended_by_the_next_run(lab: Lab) -> None:
    serving = lab.record.serving
    assert serving
    wanted = arguments(lab, "withdrawn", expect="Atlantis")
    assert run("deliver", wanted, ("before", "delete", "Deployment/*")).code is None
    again = run("deliver", wanted)
    assert again.code == 4, again.said
    record = lab.record
    assert (record.candidate, record.serving) == (None, serving)
    assert [one["metadata"]["name"] for one in lab.there("deployments")] == [f"{NAME}-{serving}"]
