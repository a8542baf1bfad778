"""A regression is named with its size when it is beyond the noise, and noise is not
called a regression.
"""

from __future__ import annotations

import random

import pytest

from model_delivery.measure.compare import comparable, compare, student
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.verdict import judge
from model_delivery.values import Slo
from tests.unit.test_validity import load


def of_runs(*ttft: float, rate: float = 100.0, **more: object) -> LoadReport:
    return load(runs=[{"ttft_p95": value, "itl_p95": 20.0, "output_tokens_per_second": rate} for value in ttft], **more)


@pytest.mark.parametrize(
    ("confidence", "freedom", "table"),
    [(0.975, 4, 2.776), (0.95, 1, 6.314), (0.95, 10, 1.812), (0.99, 3.0, 4.541), (0.975, 1000, 1.962)],
)
def test_quantiles_are_those_of_the_tables(confidence: float, freedom: float, table: float) -> None:
    assert student(confidence, freedom) == pytest.approx(table, abs=0.001)


def test_a_regression_is_named_with_its_size_noise_and_confidence() -> None:
    verdict = judge(None, of_runs(130, 131, 129), Slo(), baseline=of_runs(100, 101, 99), max_regression=0.1)
    (bad,) = [reason for reason in verdict.reasons if not reason.passed]
    assert bad.text.startswith("regressed: TTFT p95 130 ms, before 100 ms: 30 % worse, 10 % is allowed (noise bound ")
    assert bad.text.endswith("at 95 % confidence)")


def test_a_lower_rate_is_worse() -> None:
    found = {one.figure.name: one for one in compare(of_runs(100, 100, rate=80), of_runs(100, 100, rate=100), 0.1)}
    assert found["output_tokens_per_second"].outcome == "regressed"
    assert found["output_tokens_per_second"].worse == pytest.approx(0.25)
    assert found["ttft_p95"].outcome == "no regression"


def test_what_the_noise_hides_is_said_and_not_refused() -> None:
    verdict = judge(None, of_runs(100, 160, 120), Slo(), baseline=of_runs(90, 130, 100), max_regression=0.05)
    assert verdict.passed
    assert any(reason.text.startswith("too noisy to tell, raise repeats: TTFT p95") for reason in verdict.reasons)
    assert compare(of_runs(200), of_runs(100), 0.1)[0].noise is None


def test_false_alarms_are_as_rare_as_stated() -> None:
    dice, alarms, tries = random.Random(5), 0, 2000
    for _ in range(tries):
        new, old = (of_runs(*(dice.lognormvariate(4.6, 0.1) for _ in range(4))) for _ in range(2))
        alarms += any(one.outcome == "regressed" for one in compare(new, old, 0.001))
    assert alarms / tries < 0.05


def test_a_true_regression_is_found() -> None:
    dice, found, tries = random.Random(6), 0, 300
    for _ in range(tries):
        old, new = (of_runs(*(dice.lognormvariate(mu, 0.02) for _ in range(5))) for mu in (4.6, 4.75))
        found += any(one.outcome == "regressed" for one in compare(new, old, 0.1))
    assert found / tries > 0.9


def test_other_loads_and_invalid_tests_are_not_compared() -> None:
    assert comparable(of_runs(1, 1), of_runs(1, 1)) is None
    assert comparable(of_runs(1, 1, load="8 users"), of_runs(1, 1)) == "the load was 4 users, now it is 8 users"
    verdict = judge(None, of_runs(900, 900), Slo(), baseline=of_runs(1, 1, profile="rag"), max_regression=0.1)
    assert verdict.passed
    assert "not compared with the release before: the profile was rag" in verdict.reasons[-1].text


def test_a_release_before_without_figures_that_can_be_read_is_told_and_not_passed_over() -> None:
    verdict = judge(None, of_runs(900, 900), Slo(), baseline="report_version is 2", max_regression=0.1)
    assert verdict.passed
    *bounds, told = verdict.reasons
    assert told.text == "not compared with the release before: report_version is 2"
    assert judge(None, of_runs(900, 900), Slo(), baseline="report_version is 2").reasons == tuple(bounds)


def test_a_test_that_kept_no_runs_is_one_run_and_shows_no_noise() -> None:
    verdict = judge(None, of_runs(130, 131, 129), Slo(), baseline=load(runs=[]), max_regression=0.1)
    (told,) = [reason.text for reason in verdict.reasons if reason.name == "ttft_p95 regression"]
    assert "TTFT p95 130 ms, before 100 ms: 30 % worse" in told
    assert told.endswith("(one run shows no noise)")
    assert verdict.passed


def test_figures_that_no_load_test_has_are_not_compared() -> None:
    verdict = judge(None, of_runs(1e-300, 1e300), Slo(), baseline=of_runs(1, 2), max_regression=0.1)
    assert "not compared with the release before: no load test has such figures" in verdict.reasons[-1].text
