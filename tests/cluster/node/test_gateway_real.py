"""Through a real gateway (Contour and Envoy), under a steady load: no request fails and
no stream breaks while releases change.

``MODEL_DELIVERY_FLIPS``: how many promotions, and as many rollbacks, by three deliveries
side by side, canary and blue-green in turn, with streams of up to 60 s. Default: a canary
and its rollback, which moves all of the traffic at once, with streams of 17 s.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import pytest

from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.opening import Location
from model_delivery.spec import load_spec
from model_delivery.verbs.status import status
from tests.cluster.node.lab import Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.contour import GATEWAY, running_contour
from tests.parts.steady import steady
from tests.parts.tiny_model import tiny_model

FLIPS = int(os.environ.get("MODEL_DELIVERY_FLIPS") or 0)
NAMES = ("one", "two", "three") if FLIPS else ("one",)
PER_SECOND = 10  # tokens of a stream
OWN_LIMIT = 15  # seconds: Envoy's for a request that is given none
SHORT: dict[str, Any] = {"streams": 4, "low": PER_SECOND // 2, "high": 3 * PER_SECOND, "probes": 2}
ONCE: dict[str, Any] = {"streams": 2, "low": 17 * PER_SECOND, "high": 17 * PER_SECOND, "probes": 0, "once": True}
LONG: dict[str, Any] = {"streams": 2, "low": PER_SECOND, "high": 60 * PER_SECOND, "probes": 0}
SHAPES: tuple[dict[str, Any], ...] = (
    {"strategy": "canary", "steps": [10, 50], "soak": "0s", "standby": "10m"},
    {"strategy": "blue-green", "standby": "0s"},
)
pytestmark = pytest.mark.timeout(3600 if FLIPS else 300)
writing = Lock()


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    folder = tmp_path_factory.mktemp("gateway")
    with running_contour(node), running_lab(node, folder, tiny_model(folder / "model"), pushed) as made:
        yield made


def delivered(lab: Lab, name: str, label: str, rollout: dict[str, Any], **target: str) -> None:
    with writing:
        file = lab.spec(
            lab.images["engine"],
            name=name,
            storage={"claim": f"{name}-models"},
            serving={"args": ["--label", label, "--itl", str(1000 // PER_SECOND)]},
            target=target,
            gates={"smoke": None, "throughput": None},
            rollout=rollout,
        )
        wanted = load_spec(file)
    assert deliver.fn(wanted)["result"] == "promoted"


def told(lab: Lab, name: str, flips: int) -> tuple[Counter[str], Counter[str], float]:
    """What became of the probes and the streams of a delivery, and the longest stream."""
    target = {"gateway": GATEWAY, "hostname": f"{name}.test"}
    delivered(lab, name, "first", SHAPES[1], **target)
    url = f"http://{name}.test"
    with steady(url, name, **SHORT) as short, steady(url, name, **(LONG if FLIPS else ONCE)) as long:
        for flip in range(flips):
            delivered(lab, name, f"r{flip}", SHAPES[flip % len(SHAPES)], **target)
            assert rollback.fn(name, where=Location(namespace=lab.namespace))["result"] == "rolled back to"
            print(f"{name}: {flip + 1} of {flips}", flush=True)
    assert status(lab.place, name).changes == ()
    return short.probes, short.streams + long.streams, long.longest


def test_no_request_fails_and_no_stream_breaks_while_releases_change(lab: Lab) -> None:
    flips = -(-FLIPS // len(NAMES)) or 1
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda name: told(lab, name, flips), NAMES))
    probes, streams = (sum((one[0] for one in seen), Counter[str]()), sum((one[1] for one in seen), Counter[str]()))
    longest = max(one[2] for one in seen)
    print(f"{flips * len(NAMES)} times: probes {dict(probes)}, streams {dict(streams)}, longest {longest:.1f} s")
    assert probes.keys() == {"ok"}, probes
    assert streams.keys() == {"ok"}, streams
    assert longest > OWN_LIMIT
