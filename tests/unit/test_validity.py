"""What makes a load test unfit to be judged, each with its figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_delivery.measure.metrics import Client, LoadReport, Pod, Summary
from model_delivery.measure.validity import bounds, needed, validity
from model_delivery.steps.pods import Watch
from model_delivery.values import Slo
from tests.parts.timing_engine import TimingServer

SLO = Slo.model_validate({"ttft_p95_max": "500ms"})


def load(**more: object) -> LoadReport:
    ttft = Summary(count=40, mean=100, p50=100, p90=100, p95=100, p99=100, max=100)
    facts: dict[str, object] = {
        "model": "m", "load": "4 users", "profile": "chat", "seconds": 10, "requests": 40, "good": 40, "output_tokens": 90, "prompt_tokens": 50,
        "errors": {}, "latencies": {"ttft": ttft}, "output_tokens_per_second": 9.0, "requests_per_second": 0.9, "error_rate": 0, "sent": 50,
        "client": client(), "curves": {}, "timeline": [],
    }  # fmt: skip
    return LoadReport.model_validate(facts | more)


def client(**more: float) -> Client:
    return Client.model_validate({"lag_p99": 1, "coalesced": 0, "cpu_seconds": 1, "stamped": 1} | more)


def pod(**more: object) -> Pod:
    facts = {
        "url": "http://a",
        "requests": 50,
        "generated": 9,
        "preemptions": 0,
        "prefix_hits": 0,
        "before": 0,
        "changed": None,
    }
    return Pod.model_validate(facts | more)


def test_a_calm_run_is_valid() -> None:
    assert validity(load(server=[pod()]), SLO).valid


@pytest.mark.parametrize(
    ("changes", "kind", "why"),
    [
        ({"client": client(cpu_share=0.97)}, "client-limited", "used 97 % of its core"),
        ({"client": client(send_lag_p95=30)}, "client-limited", "sent up to 30 ms late"),
        ({"client": client(lag_p99=30, stamped=0)}, "client-limited", "up to 30 ms late"),
        ({"client": client(lag_p99=30, coalesced=0.05)}, "client-limited", "5 % of the events were read together"),
        ({"requests": 19}, "too short", "19 requests, at least 20 are needed"),
        ({"server": [pod(changed="was restarted during the test")]}, "server changed", "http://a was restarted"),
        ({"server": [pod(requests=60)]}, "contaminated", "finished 60 requests, 50 were ours"),
        ({"server": [pod(requests=25), pod(requests=40)]}, "contaminated", "finished 65 requests"),
        ({"server": [pod(before=3)]}, "contaminated", "3 requests of others ran when the load began"),
    ],
)
def test_each_fault_is_named_with_its_figure(changes: dict[str, object], kind: str, why: str) -> None:
    found = validity(load(**changes), SLO)
    assert found.kind == kind
    assert why in found.why


def test_a_late_loop_does_no_harm_where_the_kernel_times_every_arrival() -> None:
    assert validity(load(client=client(lag_p99=30)), SLO).valid


def test_an_error_rate_needs_no_exact_clock_and_no_percentile() -> None:
    assert validity(load(client=client(cpu_share=1), requests=2), Slo()).valid
    assert (needed(Slo()), needed(SLO), needed(Slo.model_validate({"e2e_p99_max": "9s"}))) == (1, 20, 100)


def test_goodput_takes_the_tightest_bound_of_each_metric() -> None:
    assert bounds(Slo.model_validate({"ttft_p95_max": "500ms", "ttft_p50_max": "200ms", "tpot_p95_max": "9ms"})) == {
        "ttft": 200,
        "tpot": 9,
    }


def test_a_server_that_was_restarted_or_serves_another_model_is_seen(model: Path) -> None:
    with TimingServer(model) as first:
        watch = Watch((first.url,), {})
        port = first.port
    with TimingServer(model, names=("other",), port=port):
        assert watch.pods()[0].changed == "was restarted during the test"


def test_a_server_that_tells_nothing_is_left_out() -> None:
    assert Watch(("http://127.0.0.1:9",), {}).pods() == ()
