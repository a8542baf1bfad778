"""An operator's hands on a cluster while deliveries run: edits, deletes, scales, cordons,
labels, a quota, in an order that a seed gives.

``MODEL_DELIVERY_ACTS`` says how many (6 during 2 deliveries; the whole story has
60 during 20). Every act is printed as it is done.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model_delivery.spec import load_spec
from model_delivery.values import RELEASE
from model_delivery.verbs.plan import plan
from model_delivery.verbs.status import status
from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.waiting import until
from tests.parts.sampling import SEED
from tests.parts.tiny_model import tiny_model

ACTS = int(os.environ.get("MODEL_DELIVERY_ACTS", "6"))
DURING = 3  # acts to a delivery
pytestmark = pytest.mark.timeout(120 + 90 * ACTS)
OURS = f"--selector=model-delivery/delivery={NAME}"
ENDINGS = (0, 1, 3, 4)  # what a run may end with while its ground is moved: never 2, never a fault of ours


@pytest.fixture
def lab(node: Node, tmp_path: Path) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    with running_lab(node, tmp_path, tiny_model(tmp_path / "model"), pushed) as made:
        yield made


class Operator:
    """``calm`` takes back what would keep any pod from running."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self.lab, self.chance = lab, chance
        self.node_name = json.loads(lab.node.kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
        self.acts: tuple[Callable[[], str], ...] = (
            lambda: self.edits("deployments", "set", "env", "{}", f"SEEN={chance.randrange(9)}"),
            lambda: self.edits("deployments", "scale", "{}", f"--replicas={chance.randrange(3)}"),
            lambda: self.edits("deployments", "annotate", "{}", "somebody/was=here", "--overwrite"),
            lambda: self.edits("deployments", "rollout", "restart", "{}"),
            lambda: self.edits("services", "label", "{}", f"team=t{chance.randrange(9)}", "--overwrite"),
            lambda: self.deletes("deployments"),
            lambda: self.deletes("pods"),
            lambda: self.deletes("services"),
            lambda: self.deletes("jobs"),
            lambda: self.deletes("configmaps"),
            lambda: self.deletes("leases"),
            lambda: self.kubectl("cordon", self.node_name),
            lambda: self.kubectl("uncordon", self.node_name),
            lambda: self.kubectl("create", "quota", "tight", "--hard=pods=1", "-n", lab.namespace),
            lambda: self.kubectl("delete", "quota", "tight", "--ignore-not-found", "-n", lab.namespace),
            lambda: self.kubectl("label", "node", self.node_name, "zone=elsewhere", "--overwrite"),
        )

    def act(self) -> None:
        said = self.chance.choice(self.acts)()
        print(f"    {said}", flush=True)

    def kubectl(self, *words: str) -> str:
        with suppress(RuntimeError):  # it may be there already, or be gone meanwhile
            self.lab.node.kubectl(*words)
        return "kubectl " + " ".join(words)

    def one(self, kind: str) -> str | None:
        """An object of ours, whichever."""
        found = self.lab.node.kubectl("get", kind, "-n", self.lab.namespace, OURS, "-o", "name").split()
        return self.chance.choice(found) if found else None

    def edits(self, kind: str, *words: str) -> str:
        named = self.one(kind)
        if named is None:
            return f"no {kind} to {words[0]}"
        return self.kubectl(*(named if word == "{}" else word for word in words), "-n", self.lab.namespace)

    def deletes(self, kind: str) -> str:
        named = self.one(kind)
        if named is None:
            return f"no {kind} to delete"
        return self.kubectl("delete", named, "-n", self.lab.namespace, "--wait=false", "--ignore-not-found")

    def calm(self) -> None:
        self.kubectl("uncordon", self.node_name)
        self.kubectl("delete", "quota", "tight", "--ignore-not-found", "-n", self.lab.namespace)


def test_whatever_an_operator_does_the_next_run_converges(lab: Lab) -> None:
    chance = random.Random(int(os.environ.get("MODEL_DELIVERY_SEED", SEED)))
    operator = Operator(lab, chance)
    for number in range(max(1, ACTS // DURING)):
        args = ["--label", f"r{number}"]
        file = lab.spec(lab.images["engine"], serving={"args": args, "startup_timeout": "60s"})
        print(f"delivery {number}", flush=True)
        with lab.begin("up", file) as run:
            for _ in range(DURING):
                with suppress(subprocess.TimeoutExpired):
                    run.wait(chance.uniform(0, 8))
                operator.act()
            cordoned = [*lab.there("resourcequotas"), *waiting(lab)]
            if cordoned:
                operator.calm()
            told, _ = run.communicate(timeout=300)
        why = next((line for line in told.splitlines() if line.startswith("✗")), "")
        print(f"    up ended with {run.returncode} {why}", flush=True)
        assert run.returncode in ENDINGS, told
        assert "Traceback" not in told, told
        operator.calm()
        lab.deliver("up", "--take-over", file)
        converged(lab, file)


def waiting(lab: Lab) -> list[dict[str, object]]:
    return [pod for pod in lab.there("pods") if pod["status"].get("phase") == "Pending"]


def converged(lab: Lab, file: Path) -> None:
    now = status(lab.place, NAME)
    assert (now.state, now.candidate) == ("up", None), now
    until(lambda: alone(lab, str(now.serving)), 90, "another release stays")
    planned = plan(lab.place, load_spec(file))
    assert (planned.result, planned.changes) == ("unchanged", ())
    known = {ref.name for ref in lab.place.world(NAME).objects if ref.kind == RELEASE}
    labelled = {one["metadata"]["labels"].get("model-delivery/release") for one in lab.there("deployments", "")}
    assert labelled <= known, "nothing without a record"
    lab.deliver("plan", file)


def alone(lab: Lab, serving: str) -> bool:
    pods = lab.there("pods", "model-delivery/role=release")
    return {pod["metadata"]["labels"]["model-delivery/release"] for pod in pods} == {serving}
