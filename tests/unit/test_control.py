"""What the serving release does under the same load says whose fault a figure is."""

from __future__ import annotations

import pytest

from model_delivery.base import Finding, GateFailed
from model_delivery.measure.control import blame, breaks_figures
from model_delivery.measure.metrics import LoadReport, Summary
from model_delivery.measure.verdict import judge
from model_delivery.run.record import Candidate
from model_delivery.run.rules import at_fault
from model_delivery.values import FETCH, Gates, Rollout, Slo
from tests.unit.test_verdict import load

SLO = Slo.model_validate({"error_rate_max": 1, "ttft_p95_max": "500ms"})


def taking(p95: float) -> LoadReport:
    return load(latencies={"ttft": Summary(count=10, mean=p95, p50=p95, p90=p95, p95=p95, p99=p95, max=p95)})


@pytest.mark.parametrize(
    ("beside", "then", "code", "told"),
    [
        (300, 290, "", "a1, loaded alike in the same minutes, keeps to ttft_p95_max: it is the release"),
        (800, 300, "gate.node", "does no better, and did when it was promoted: TTFT p95 800 ms, then 300 ms"),
        (800, 780, "gate.bound", "breaks it too, as when it was promoted: TTFT p95 800 ms"),
        (800, None, "gate.bound", "breaks it too, what it did when it was promoted is not kept: TTFT p95 800 ms"),
    ],
)
def test_release_node_or_bound(beside: float, then: float | None, code: str, told: str) -> None:
    judged = judge(None, taking(812), SLO)
    assert breaks_figures(judged)
    earlier = None if then is None else taking(then)
    reason = blame(judged, taking(812), taking(beside), earlier, SLO, None, "a1")
    assert (reason.code, reason.passed) == (code, not code)
    assert told in reason.text


def test_a_node_that_is_slow_condemns_no_release() -> None:
    tried = Candidate("b2", "deliver", 1, FETCH, "request", Rollout(), Gates())
    slow = Finding("gate.ttft-p95", "TTFT p95 812 ms is over the bound of 500 ms")
    assert at_fault(tried, GateFailed(slow))
    assert not at_fault(tried, GateFailed(slow, Finding("gate.node", "it is the node")))


def test_what_passes_or_cannot_be_judged_is_not_measured_again() -> None:
    assert not breaks_figures(judge(None, taking(400), SLO))
