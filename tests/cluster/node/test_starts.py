"""The phases of a start as a real kubelet and containerd tell them: in order, at the
cluster's own moments, none invented; a slow pull is told from a slow load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest

from model_delivery.targets.kubernetes.release import MOUNT
from model_delivery.values import Phase
from model_delivery.verbs.status import status
from tests.cluster.node.lab import NAME, PULL, Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import NODE, Node
from tests.parts.cluster.waiting import until
from tests.parts.tiny_model import tiny_model
from tests.unit.test_start_kept import LINES, LOGGED

pytestmark = pytest.mark.timeout(600)
GATE = "example.com/gate"  # a device that the node has once a test says so
SAYS = f"""
with open("{MOUNT}/lines") as lines:
    for line in lines:
        print(line, end="", flush=True)
"""
SECONDS = 120


class Run:
    """``deliver up``, heard line by line."""

    def __init__(self, lab: Lab, file: Path) -> None:
        self.process, self.lines, self.said = lab.begin("up", file), Queue[str](), list[str]()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            self.lines.put(line)

    def hears(self, words: str) -> str:
        while words not in (line := self.lines.get(timeout=SECONDS)):
            pass
        return line

    def ends(self) -> str:
        assert self.process.wait(SECONDS) == 0, "".join(self.said)
        return "".join(self.said)


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {
        "runner": images.push_project(node.registry),
        "engine": images.push_told_engine(node.registry, "told", SAYS),
    }
    folder = tmp_path_factory.mktemp("starts")
    with running_lab(node, folder, tiny_model(folder / "model"), pushed) as made:
        yield made


def engine_pod(lab: Lab, *others: str) -> dict[str, Any] | None:
    """The release's pod that is none of ``others``."""
    pods = lab.there("pods", "model-delivery/role=release")
    return next((one for one in pods if one["metadata"]["uid"] not in others), None)


def pipe(lab: Lab) -> Path:
    """What is written there the engine says, and serves once it is closed."""
    made = lab.volume() / "lines"
    if not made.exists():
        os.mkfifo(made)
        made.chmod(0o666)
    return made


def opens(lab: Lab, gate: str = GATE) -> None:
    """The node has the device from now on."""
    change = {"status": {"capacity": {gate: "8"}}}
    lab.node.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", json.dumps(change))


def told_by_the_cluster(lab: Lab, pod: Mapping[str, Any]) -> dict[Phase, float]:
    """Seconds since the pod was made, in Kubernetes' own words."""
    meta, now = (
        pod["metadata"],
        json.loads(lab.node.kubectl("get", "pod", pod["metadata"]["name"], "-n", lab.namespace, "-o", "json")),
    )
    since = {one["type"]: one["lastTransitionTime"] for one in now["status"]["conditions"] if one["status"] == "True"}
    (container,) = now["status"]["containerStatuses"]
    pulled = [
        one for one in lab.there("events") if one["reason"] == "Pulled" and one["involvedObject"]["uid"] == meta["uid"]
    ]
    moments = {
        Phase.SCHEDULED: since["PodScheduled"],
        Phase.PULLED: pulled[0]["firstTimestamp"],
        Phase.PROCESS: container["state"]["running"]["startedAt"],
        Phase.HEALTHY: since["Ready"],
    }
    return {phase: _at(moment) - _at(meta["creationTimestamp"]) for phase, moment in moments.items()}


def _at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def test_a_slow_pull_is_told_from_a_slow_load(lab: Lab) -> None:
    """Beside the fetch the image is pulled already; so it is taken away again before the
    node has room for the pod.
    """
    image, resources = lab.images["engine"], {"limits": {GATE: 1}}
    run = Run(lab, lab.spec(image, serving={"pod": PULL, "resources": resources, "args": ["--label", "slow"]}))
    run.hears(f"Insufficient {GATE}")
    assert [*status(lab.place, NAME).start] == []
    lab.node.forget_image(image)
    lines = pipe(lab)
    with lab.node.registry.holding("/told/manifests/") as over:
        opens(lab)
        assert "Pulling image" in run.hears("Pulling")
        assert [*status(lab.place, NAME).start] == [Phase.SCHEDULED]
        shown = lab.deliver("status", NAME, "--namespace", lab.namespace)
        assert "Pulling image" in shown
        over.set()
    run.hears("the engine is starting")
    pod = until(lambda: engine_pod(lab), 10, "it is gone")
    assert [*status(lab.place, NAME).start] == [Phase.SCHEDULED, Phase.PULLED, Phase.PROCESS]
    with lines.open("w", buffering=1) as says:
        for line, words in LINES:
            says.write(f"{line}\n")
            run.hears(f"the engine is starting: {words}")
        assert [*status(lab.place, NAME).start][-2:] == [Phase.COMPILED, Phase.WARM]
    assert f"{NAME}: promoted" in run.ends()
    starts = lab.record.ended[-1].starts
    assert [*starts] == [*Phase]
    assert [*starts.values()] == sorted(starts.values())
    for phase, seconds in told_by_the_cluster(lab, pod).items():
        assert starts[phase] == pytest.approx(seconds, abs=1.0), phase  # a log's moments are finer than the rest
    history = lab.deliver("history", NAME, "--namespace", lab.namespace, "--starts")
    assert f"image pulled {starts[Phase.PULLED]:.1f} s" in history
    assert f"first token {starts[Phase.ANSWERED]:.1f} s" in history


def test_an_engine_that_says_nothing_has_no_phase_that_only_it_could_tell(lab: Lab) -> None:
    """Its image is there already, which the kubelet tells as pulled."""
    before = [one["metadata"]["uid"] for one in lab.there("pods", "model-delivery/role=release")]
    run = Run(lab, lab.spec(lab.images["engine"], serving={"pod": PULL, "args": ["--label", "silent"]}))
    pod = until(lambda: engine_pod(lab, *before), SECONDS, "it is not made")
    pipe(lab).open("w").close()
    run.ends()
    starts = lab.record.ended[-1].starts
    assert [*starts] == [phase for phase in Phase if phase not in LOGGED]
    assert [*starts.values()] == sorted(starts.values())
    for phase, seconds in told_by_the_cluster(lab, pod).items():
        assert starts[phase] == pytest.approx(seconds, abs=1.0), phase
