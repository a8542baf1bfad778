"""Through a real gateway (Contour and Envoy), under a steady load: no request fails and
no stream breaks while releases change.

``MODEL_DELIVERY_FLIPS``: how many promotions, and as many rollbacks, canary and
blue-green in turn, with streams of up to 60 s (default: one of each, with some of 17 s).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.opening import Location
from model_delivery.spec import load_spec
from model_delivery.verbs.status import status
from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.contour import GATEWAY, running_contour
from tests.parts.steady import steady
from tests.parts.tiny_model import tiny_model

FLIPS = os.environ.get("MODEL_DELIVERY_FLIPS", "")
PER_SECOND = 10  # tokens of a stream
OWN_LIMIT = 15  # seconds: Envoy's for a request that is given none
LONG = {"probes": 0, "streams": 4, "low": PER_SECOND, "high": 60 * PER_SECOND}
ONCE = {"probes": 0, "streams": 2, "low": 17 * PER_SECOND, "high": 17 * PER_SECOND, "once": True}
SHAPES: tuple[dict[str, Any], ...] = (
    {"strategy": "canary", "steps": [10, 50], "soak": "0s", "standby": "10m"},
    {"strategy": "blue-green", "standby": "0s"},
)
pytestmark = pytest.mark.timeout(3600 if FLIPS else 300)


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    folder = tmp_path_factory.mktemp("gateway")
    with running_contour(node), running_lab(node, folder, tiny_model(folder / "model"), pushed) as made:
        yield made


def delivered(lab: Lab, label: str, rollout: dict[str, Any]) -> None:
    file: Path = lab.spec(
        lab.images["engine"],
        serving={"args": ["--label", label, "--itl", str(1000 // PER_SECOND)]},
        target={"gateway": GATEWAY, "hostname": f"{NAME}.test"},
        gates={"smoke": None, "throughput": None},
        rollout=rollout,
    )
    assert deliver.fn(load_spec(file))["result"] == "promoted"


def test_no_request_fails_and_no_stream_breaks_while_releases_change(lab: Lab) -> None:
    delivered(lab, "first", SHAPES[1])
    url = f"http://{NAME}.test"
    with (
        steady(url, NAME, streams=8, low=PER_SECOND // 2, high=3 * PER_SECOND) as short,
        steady(url, NAME, **(LONG if FLIPS else ONCE)) as long,
    ):
        for flip in range(int(FLIPS or len(SHAPES))):
            delivered(lab, f"r{flip}", SHAPES[flip % len(SHAPES)])
            back = rollback.fn(NAME, where=Location(namespace=lab.namespace))
            assert back["result"] == "rolled back to"
    print(f"probes {dict(short.probes)}, streams {dict(short.streams + long.streams)}, longest {long.longest:.1f} s")
    assert short.probes.keys() == {"ok"}, short.probes
    assert (short.streams + long.streams).keys() == {"ok"}, (short.streams, long.streams)
    assert long.longest > OWN_LIMIT
    assert status(lab.place, NAME).changes == ()
