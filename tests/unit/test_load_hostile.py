"""The load test of servers that refuse, buffer, or say what cannot be counted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import BadInput
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.verdict import judge
from model_delivery.steps import Step
from model_delivery.steps.load import LoadInput, profile, run
from model_delivery.steps.pods import Watch
from model_delivery.steps.run import outcome
from tests.parts.raw_server import CHUNKED, END, RawServer, answer, chunk, delta, stream, usage

CHAT = "/v1/chat/completions"
PROFILE = {"prompt_tokens": 4, "output_tokens": 20, "timeout": 5}
WORDS = [delta(content=f"w{n} ") for n in range(19)]
SOUND = stream(delta(role="assistant", content=""), *WORDS, delta("stop", content="end"), usage(20), b"[DONE]")


def loaded(said: bytes | Iterable[bytes | float], folder: Path, **more: Any) -> tuple[LoadReport, list[str]]:
    facts = {"model": "m", "profile": PROFILE, "warmup": "0s", "duration": "1s", "users": 1, "folder": str(folder)}
    with RawServer({CHAT: said}) as server:
        report = run(LoadInput.model_validate({"url": server.url, **facts, **more}))
        return report, server.asked


def test_a_stream_delivered_in_one_piece_is_buffered_and_its_gaps_are_not_judged(tmp_path: Path) -> None:
    slo = {"itl_p95_max": "50ms", "tpot_p50_max": "50ms", "ttft_p50_max": "9s", "error_rate_max": 0}
    report, _ = loaded([0.3, SOUND], tmp_path, duration="3s", slo=slo)
    assert report.validity.kind == "buffered"
    verdict = judge(
        None, report, LoadInput(url="http://h", model="m", profile="chat", warmup="0s", duration="1s", slo=slo).slo
    )
    judged = {reason.name: (reason.passed, reason.text) for reason in verdict.reasons}
    assert [judged[name][0] for name in ("itl_p95_max", "tpot_p50_max", "ttft_p50_max", "error_rate_max")] == [
        False,
        False,
        True,
        True,
    ]
    assert "cannot be judged, the stream is buffered" in judged["itl_p95_max"][1]
    assert not (tmp_path / "again-0").exists()


def test_a_429_with_retry_after_is_obeyed(tmp_path: Path) -> None:
    slow = answer({"error": {"message": "slow down"}}, "429 Too Many Requests", "Retry-After: 2")
    report, asked = loaded(slow, tmp_path, duration="3s")
    assert asked.count(CHAT) <= 3
    assert report.error_kinds() == f"{report.requests} × status 429 (slow down)"
    assert report.sent == report.requests + report.good == asked.count(CHAT)


def test_a_server_that_refuses_everything_ends_the_test_early_also_in_the_warm_up(tmp_path: Path) -> None:
    began = time.monotonic()
    report, asked = loaded(answer({"error": "bad key"}, "401 No"), tmp_path, users=8, warmup="60s", duration="300s")
    assert time.monotonic() - began < 45
    assert 10 <= report.requests == report.errors["status 401"] <= asked.count(CHAT) < 400
    assert report.said == {"status 401": "bad key"}


def test_half_the_requests_failing_is_no_reason_to_end(tmp_path: Path) -> None:
    turn = iter([True])

    class Alternating:
        def __iter__(self) -> Any:
            yield SOUND if next(turn, None) else answer({}, "503 Busy")

    report, _ = loaded(Alternating(), tmp_path, duration="4s")
    assert report.good == 1
    assert report.seconds >= 3.9
    assert report.requests == report.good + sum(report.errors.values())


def test_a_usage_that_is_no_mapping_is_an_error_of_its_kind(tmp_path: Path) -> None:
    report, asked = loaded(stream(*WORDS, delta("stop"), {"choices": [], "usage": "n/a"}, b"[DONE]"), tmp_path)
    assert report.errors == {"not JSON": report.requests}
    assert report.sent == asked.count(CHAT)
    assert "Traceback" not in (tmp_path / "load-0" / "locust.log").read_text()


def test_a_request_that_hangs_is_counted_when_the_test_is_over(tmp_path: Path) -> None:
    report, _ = loaded(
        [CHUNKED, 4.0, chunk(b"data: [DONE]\n\n") + END], tmp_path, profile=PROFILE | {"timeout": 1}, duration="500ms"
    )
    assert report.errors == {"timeout after 1 s": report.requests}
    assert report.requests > 0


def test_a_prompt_that_begins_with_a_brace_is_asked_as_it_is(tmp_path: Path) -> None:
    lines = ['{"a": 1} is what?', "{not json}", '{"prompt": "of json", "output_tokens": 5}', ""]
    report, _ = loaded(SOUND, tmp_path, profile={"output_tokens": 20, "prompts": lines})
    assert report.good == report.requests > 0
    assert (tmp_path / "load-0" / "locust.log").stat().st_size < 20_000


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "a"', '{"prompt": 5}', '{"messages": "hi"}', '{"prompt": "a", "output_tokens": "many"}', '{"messages": []}', '{"prompt": "a", "messages": [{}]}', " "],
)  # fmt: skip
def test_a_prompt_that_is_none_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(BadInput, match="prompt"):
        profile({"output_tokens": 5, "prompts": ["fine"] * bool(line.strip()) + [line]})


def test_a_load_longer_than_its_profile_allows_is_refused() -> None:
    from model_delivery.base import Duration

    with pytest.raises(BadInput, match="longer than its profile allows"):
        profile("chat", Duration("999h"))
    with pytest.raises(ValueError, match="is more than 3650d"):
        Duration("9" * 9 + "h")


def test_a_gauge_that_is_no_number_is_left_out() -> None:
    page = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 2\n# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc NaN\n"
    with RawServer({"/metrics": answer(page)}) as server:
        (pod,) = Watch((server.url,), {}).pods()
    assert pod.before == 2
    assert "null" not in json.dumps([gauge.model_dump() for gauge in pod.gauges])
    assert [gauge.kv_use for gauge in pod.gauges] == [0]


def test_a_result_that_json_cannot_say_is_told_by_the_step_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_delivery.measure.metrics import Client
    from model_delivery.steps import run as running

    step = Step("load", Client, Client, lambda given: given.model_copy(update={"lag_p99": float("nan")}))
    monkeypatch.setattr(running, "find", lambda _: step)
    with (tmp_path / "out").open("w") as out:
        assert outcome("load", '{"lag_p99": 1, "coalesced": 0, "cpu_seconds": 1}', out) == 1
    assert "the load step broke" in (tmp_path / "out").read_text()
