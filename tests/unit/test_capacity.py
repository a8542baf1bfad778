"""The search for the highest rate that holds: on servers of known capacity, as functions
of the rate.
"""

from __future__ import annotations

import pytest

from model_delivery.measure.capacity import Capacity, find
from model_delivery.measure.metrics import LoadReport, Summary, Validity
from model_delivery.values import Slo
from tests.unit.test_validity import load

SLO = Slo.model_validate({"ttft_p95_max": "500ms"})


def server(rate: float, holds: float, **more: object) -> LoadReport:
    ms = 100.0 if rate <= holds else 900.0
    ttft = Summary(count=40, mean=ms, p50=ms, p90=ms, p95=ms, p99=ms, max=ms)
    return load(latencies={"ttft": ttft}, requests_per_second=rate, **more)


@pytest.mark.parametrize("holds", [0.9, 3.0, 40.0, 333.0])
def test_it_ends_within_ten_percent_of_the_truth(holds: float) -> None:
    found = find(lambda rate: server(rate, holds), SLO, start=2.0, steps=20)
    assert found.rate is not None
    assert found.broken is not None
    assert found.rate <= holds < found.broken <= 1.1 * found.rate
    assert "TTFT p95 900 ms is over the bound" in found.limit


def test_steps_are_bounded() -> None:
    asked: list[float] = []

    def measure(rate: float) -> LoadReport:
        asked.append(rate)
        return server(rate, 1e9)

    found = find(measure, SLO, start=1.0, steps=5)
    assert asked == [1, 2, 4, 8, 16]
    assert (found.rate, found.broken, found.limit) == (16, None, "5 steps were made")


def test_the_load_generator_as_the_limit_is_said() -> None:
    limited = Validity(kind="client-limited", why="a process used 97 % of its core")
    found = find(lambda rate: server(rate, 1e9, **({"validity": limited} if rate > 10 else {})), SLO, start=8.0)
    assert found.rate == 8
    assert "the load generator is the limit at 16/s" in found.limit


def test_a_queue_that_grows_does_not_hold_whatever_the_latency() -> None:
    timeline = [{"at": s, "tokens_per_second": 1, "in_flight": 4 * s, "errors": 0} for s in range(12)]
    found = find(lambda rate: server(rate, 1e9, timeline=timeline), SLO, start=1.0, steps=3)
    assert found.rate is None
    assert all("requests in flight grew from 6 to 38" in point.why for point in found.points)


def test_replicas_for_a_demand() -> None:
    assert Capacity(12.5, 13, "", ()).replicas(100) == 8
    assert Capacity(None, 1, "", ()).replicas(100) is None
