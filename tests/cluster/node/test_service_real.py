"""Through the plain Service of a ``deployment``, under an open loop of keep-alive clients
that send nothing twice: no request fails and no stream breaks while releases change.

But for one thing that no Service can help: a request that meets the end of an idle
connection, before any byte of an answer, at most one a connection of a stopped pod.
``MODEL_DELIVERY_FLIPS``: as in ``test_gateway_real``; streams of up to 30 s then.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from model_delivery.flows.rollback import rollback
from model_delivery.places.opening import Location
from model_delivery.verbs.status import status
from tests.cluster.node.lab import Lab, running_lab
from tests.cluster.node.test_gateway_real import FLIPS, NAMES, PER_SECOND, delivered
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.steady import Steady, steady
from tests.parts.tiny_model import tiny_model

SPARED = 5  # seconds between a pod's end and its engine's SIGTERM: manifests/deployment.yaml
LOAD: dict[str, Any] = {"rate": 6.0, "probes": 0, "low": 5, "high": 30 * PER_SECOND if FLIPS else 65}
SHAPES: tuple[dict[str, Any], ...] = ({"standby": "0s"}, {"standby": "10m"})
pytestmark = pytest.mark.timeout(3600 if FLIPS else 300)


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    folder = tmp_path_factory.mktemp("service")
    with running_lab(node, folder, tiny_model(folder / "model"), pushed) as made:
        yield made


def told(lab: Lab, name: str, flips: int) -> Steady:
    """What became of the load on a delivery whose old release is stopped by each
    promotion, and stands by after every second one.
    """
    delivered(lab, name, "first", SHAPES[0])
    began = time.monotonic()
    with steady(f"http://{name}.{lab.namespace}.svc:8000", name, **LOAD) as load:
        for flip in range(flips):
            delivered(lab, name, f"r{flip}", SHAPES[flip % len(SHAPES)])
            print(f"{name}: promoted after {time.monotonic() - began:.1f} s", flush=True)
            assert rollback.fn(name, where=Location(namespace=lab.namespace))["result"] == "rolled back to"
            print(f"{name}: {flip + 1} of {flips}, rolled back after {time.monotonic() - began:.1f} s", flush=True)
    print(f"{name}: failed at {load.failed}", flush=True)
    assert status(lab.place, name).changes == ()
    return load


def test_no_request_fails_but_on_an_idle_connection_of_a_stopped_pod(lab: Lab) -> None:
    flips, began = -(-FLIPS // len(NAMES)) or 1, time.monotonic()
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda name: told(lab, name, flips), NAMES))
    streams, connections, resets = (
        sum((getattr(one, part) for one in seen), Counter[str]()) for part in ("streams", "connections", "resets")
    )
    live = {pod["metadata"]["name"] for pod in lab.there("pods", "model-delivery/release")}
    idle = sum(count for pod, count in connections.items() if pod not in live)
    print(
        f"{flips * len(NAMES)} promotions and rollbacks in {time.monotonic() - began:.0f} s: streams {dict(streams)}, longest "
        f"{max(one.longest for one in seen):.1f} s; {len(connections)} pods, {idle} connections of stopped ones, {dict(resets)} reset"
    )
    assert streams.keys() <= {"ok", "reset"}, streams
    assert streams["reset"] == resets.total(), "at most one a connection"
    assert not resets.keys() & live, "of a pod that nobody stops"
    assert resets.keys() <= connections.keys() - {""}
    assert len(connections.keys() - live) >= (flips + 1) * len(NAMES), "pods were stopped under the load"
    assert min(one.longest for one in seen) > SPARED
