"""A load test says no, in a cluster: is it the release, or the node? What serves, loaded
alike, tells; and of a release, which change did it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_delivery.spec import DeliverySpec
from model_delivery.verbs.status import status
from tests.cluster.control.lab import ENGINE, NAME, Lab, delivering_lab, written
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.played_pod import loopback

SLOW_IMAGE = f"registry.example/engine@sha256:{'5' * 64}"
FAST, SLOW, BOUND = "400", "1200", "800ms"  # ms to the first token: no busy machine makes one of the other


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    """The node's images are put right afterwards."""
    images = dict(node.entrypoints)
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made
    node.entrypoints.clear()
    node.entrypoints |= images


def spec(lab: Lab, *args: str, **more: Any) -> DeliverySpec:
    """Of a release that shall give its first token in time."""
    load = {"profile": "smoke", "users": 4, "warmup": "0s", "duration": "2s"}
    load |= {"slo": {"error_rate_max": 0, "ttft_p50_max": BOUND}}
    gates = {"smoke": {"max_tokens": 16}, "throughput": load}
    return lab.spec(gates=gates, serving={"args": ["--itl", "1", *args]}, **more)


def said(lab: Lab, folder: Path, verb: str, spec: DeliverySpec, code: int = 0) -> str:
    """What ``deliver VERB FILE`` prints, all of it."""
    done = lab.deliver(verb, written(spec, folder), code=code)
    return done.stdout + done.stderr


def pod(lab: Lab, release: str | None) -> str:
    """Where the one pod of ``release`` answers."""
    selector = f"model-delivery/release={release}"
    (found,) = json.loads(lab.cluster.kubectl("get", "pods", "-n", lab.namespace, "-l", selector, "-o", "json"))[
        "items"
    ]
    return f"http://{loopback(found['status']['podIP'])}:8000"


def answers_of(lab: Lab, release: str | None) -> int:
    told: dict[str, Any] = httpx.get(f"{pod(lab, release)}/truth", trust_env=False).json()
    return int(told["requests"])


def test_a_slow_release_is_told_from_a_slow_node(lab: Lab, tmp_path: Path) -> None:
    hot = tmp_path / "hot"
    lab.node.entrypoints[ENGINE] = (*lab.node.entrypoints[ENGINE], "--ttft", FAST, "--throttled", hot)
    said(lab, tmp_path, "up", spec(lab))
    serves = lab.record.serving
    slow = said(lab, tmp_path, "up", spec(lab, "--ttft", SLOW), code=4)
    assert f"{serves}, loaded alike in the same minutes, keeps to ttft_p50_max: it is the release" in slow
    assert "[gate.ttft-p50]" in slow
    before = lab.record
    assert before.held is not None
    hot.touch()
    good = spec(lab, "--tokens", "17")
    told = said(lab, tmp_path, "up", good, code=4)
    assert f"{serves}, loaded alike in the same minutes, does no better, and did when it was promoted" in told
    assert "[gate.node]" in told
    after = lab.record
    assert (after.serving, after.held) == (serves, None)
    hot.unlink()
    assert f"{NAME}: promoted" in said(lab, tmp_path, "up", good)


def test_what_serves_is_not_loaded_while_somebody_uses_it(lab: Lab, tmp_path: Path) -> None:
    said(lab, tmp_path, "up", spec(lab, "--itl", "40", "--max-model-len", "8000"))
    serves = lab.record.serving
    asked = {"model": NAME, "prompt": "hello", "max_tokens": 7000, "stream": True}
    with httpx.stream("POST", f"{pod(lab, serves)}/v1/completions", json=asked, trust_env=False, timeout=60) as user:
        lines = user.iter_lines()
        next(lines)
        before = answers_of(lab, serves)
        told = said(lab, tmp_path, "up", spec(lab, "--ttft", SLOW), code=4)
        assert answers_of(lab, serves) == before
    assert "[gate.ttft-p50]" in told
    assert f"{serves} could not be measured beside it: somebody uses it" in told
    assert lab.record.serving == serves


def test_which_change_of_a_refused_release_did_it_is_found_in_the_dark(lab: Lab, tmp_path: Path) -> None:
    """Model, image and arguments are others; what is slow is in the image."""
    plain = lab.node.entrypoints[ENGINE]
    lab.node.entrypoints |= {ENGINE: (*plain, "--ttft", FAST), SLOW_IMAGE: (*plain, "--ttft", SLOW)}
    said(lab, tmp_path, "up", spec(lab))
    serves = lab.record.serving
    lab.hub.older[lab.hub.commit] = dict(lab.hub.files)
    lab.hub.files["generation_config.json"] = b'{"temperature": 0.5}'
    bad = spec(lab, "--tokens", "17", "--max-model-len", "1024", target={"image": SLOW_IMAGE})
    assert "[release.nothing-refused]" in said(lab, tmp_path, "bisect", bad, code=3)
    said(lab, tmp_path, "up", bad, code=4)
    held = lab.record.held
    assert held is not None
    assert f"the refusal came with engine: {ENGINE} → {SLOW_IMAGE}" in said(lab, tmp_path, "bisect", bad)
    assert 1 <= len([ended for ended in lab.record.ended if ended.outcome == "tried"]) <= 3
    assert (lab.record.serving, lab.record.held) == (serves, held)
    world = lab.place.world(NAME)
    assert [ref.name for ref in world.objects if ref.kind.name == "Deployment"] == [f"{NAME}-{serves}"]
    assert status(lab.place, NAME).changes == ()
