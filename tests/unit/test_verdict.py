"""The verdict says in words which figure broke which bound."""

from __future__ import annotations

import pytest

from model_delivery.measure.metrics import Client, Histogram, LoadReport, Summary
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.measure.verdict import judge
from model_delivery.values import Slo
from model_delivery.values.metrics import FIGURES, METRICS


def load(**more: object) -> LoadReport:
    ttft = Summary(count=10, mean=600, p50=500, p90=700, p95=812, p99=900, max=950)
    facts: dict[str, object] = {
        "model": "m", "load": "4 users", "profile": "chat", "seconds": 10, "requests": 10, "good": 9, "output_tokens": 90, "prompt_tokens": 50,
        "errors": {"no usage": 1}, "latencies": {"ttft": ttft}, "output_tokens_per_second": 9.0, "requests_per_second": 0.9, "error_rate": 0.1,
        "client": Client(lag_p99=1, coalesced=0, cpu_seconds=1), "curves": {}, "timeline": [],
    }  # fmt: skip
    return LoadReport.model_validate(facts | more)


def test_a_broken_bound_is_told_with_figure_and_bound() -> None:
    verdict = judge(None, load(), Slo.model_validate({"error_rate_max": None, "ttft_p95_max": "500ms"}))
    assert not verdict.passed
    assert [r.text for r in verdict.reasons] == ["TTFT p95 812 ms is over the bound of 500 ms"]
    assert (verdict.reasons[0].figure, verdict.reasons[0].bound) == (812, 500)


def test_errors_are_told_by_kind() -> None:
    (reason,) = judge(None, load(), Slo()).reasons
    assert reason.text == "error rate 10 % is over the bound of 0 % (1 × no usage)"


def test_a_rate_below_its_bound_fails_and_one_at_it_passes() -> None:
    low, even = (
        judge(None, load(), Slo.model_validate({"error_rate_max": 1, "output_tokens_per_second_min": bound}))
        for bound in (9.5, 9.0)
    )
    assert [r.text for r in low.reasons if not r.passed] == ["output rate 9 tok/s is under the bound of 9.5 tok/s"]
    assert even.passed


def test_a_figure_that_was_not_measured_fails_its_bound() -> None:
    verdict = judge(None, load(latencies={}), Slo.model_validate({"error_rate_max": 1, "itl_p95_max": "1s"}))
    assert "ITL p95 was not measured" in verdict.reasons[-1].text
    assert not verdict.passed


def test_a_failed_smoke_check_refuses_whatever_the_load_was() -> None:
    checks = (Check(name="known answer", passed=False, detail="'Paris' is not in 'Rome'", seconds=0.1),)
    verdict = judge(SmokeReport(checks=checks, answer="Rome"), None, None)
    assert [r.text for r in verdict.reasons if not r.passed] == ["known answer: 'Paris' is not in 'Rome'"]


def test_every_slo_key_bounds_a_metric_of_the_table() -> None:
    names = {metric.key for metric in METRICS}
    figures = {figure.bound: figure for figure in FIGURES.values()}
    for key in Slo.model_fields:
        name = key.rsplit("_", 1)[0]
        assert name in names or name.rpartition("_")[0] in names, key
        assert load().value(figures[key]) is not None or name.partition("_")[0] != "ttft"


def test_histograms_add_up_exactly_and_keep_a_tenth_of_a_percent() -> None:
    one, other = Histogram(), Histogram()
    one.add(range(20_000_000, 30_000_000, 1000))
    other.add(range(30_000_000, 40_000_000, 1000))
    one.update(other)
    assert one.total() == 20_000
    assert one.percentile(50) == pytest.approx(30, rel=0.001)
    assert one.percentile(95) == pytest.approx(39, rel=0.001)
