"""The throughput step: a real Locust against a server that tells what it really sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from model_delivery.base import BadInput, Permanent
from model_delivery.measure.metrics import LoadReport
from model_delivery.steps.load import LoadInput, profile, run
from tests.parts.raw_server import RawServer
from tests.parts.timing_engine import TimingServer


def loaded(server: TimingServer, folder: Path, **more: object) -> LoadReport:
    folder.mkdir(exist_ok=True)
    facts = {
        "url": server.url,
        "model": "m",
        "profile": "smoke",
        "warmup": "0s",
        "duration": "1s",
        "folder": str(folder),
    }
    return run(LoadInput.model_validate(facts | more))


def test_every_request_and_token_is_counted(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "30", "--itl", "5") as server:
        report = loaded(server, tmp_path, users=4)
        truth = server.truth()
    assert report.good == report.requests == truth["requests"]
    assert report.output_tokens == truth["tokens"]
    assert report.errors == {}
    assert report.latencies["itl"].count == sum(len(stream["gaps_ns"]) for stream in truth["streams"])
    true = sorted(s["ttft_ns"] for s in truth["streams"])[-(-len(truth["streams"]) // 2) - 1] / 1e6
    assert report.latencies["ttft"].p50 >= true * 0.999


def test_an_open_loop_keeps_its_rate(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "5", "--itl", "1") as server:
        report = loaded(server, tmp_path, rate="40/s", duration="3s")
        assert report.requests == server.truth()["requests"]
    assert 80 <= report.requests <= 160
    assert report.load == "40 requests/s, Poisson"


def test_what_must_not_be_used_is_loaded_only_where_it_says_that_it_stands_idle(model: Path, tmp_path: Path) -> None:
    asked = {"model": "m", "prompt": "hello", "max_tokens": 1000, "stream": True}
    with TimingServer(model, "--itl", "20") as server, RawServer({}) as silent:
        given = {"unless_used": True, "users": 2}
        assert loaded(server, tmp_path, **given).good
        with pytest.raises(Permanent, match="it cannot be seen whether somebody uses it"):
            loaded(server, tmp_path, metrics=[server.url, silent.url], **given)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, trust_env=False) as user:
            next(user.iter_lines())
            served = server.truth()["requests"]
            with pytest.raises(Permanent, match="somebody uses it"):
                loaded(server, tmp_path, metrics=[server.url, silent.url], **given)
            assert server.truth()["requests"] == served


def test_errors_inside_a_stream_are_errors(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--stream-error") as server:
        report = loaded(server, tmp_path, users=2)
    assert report.good == 0
    assert report.error_rate == 1
    assert set(report.errors) == {"error in the stream"}


FAULTS = {
    "status": "status 503",
    "stream-error": "error in the stream",
    "no-finish": "no finish reason",
    "no-usage": "no usage",
    "no-done": "no [DONE]",
    "empty": "zero tokens",
    "short": "short of the asked length",
    "boast": "usage beyond the asked length",
    "cut": "closed early",
    "hang": "timeout after 1 s",
}


@pytest.mark.parametrize(("fault", "kind"), FAULTS.items())
def test_every_kind_of_error_is_counted_exactly(model: Path, tmp_path: Path, fault: str, kind: str) -> None:
    content = {"prompt_tokens": 16, "output_tokens": 8, "ignore_eos": True, "timeout": 1, "max_requests": 48}
    with TimingServer(model, "--ttft", "5", "--itl", "1", "--fault", fault, "--fault-every", "4") as server:
        report = loaded(server, tmp_path, users=4, profile=content, duration="20s")
    assert report.errors == {kind: report.requests // 4}
    assert report.good == report.requests - report.requests // 4
    assert 48 <= report.requests <= 52
    assert report.seconds < 20


def test_prompts_have_exactly_the_asked_tokens_by_the_servers_count(model: Path, tmp_path: Path) -> None:
    with TimingServer(model) as server:
        report = loaded(
            server, tmp_path, users=2, profile={"prompt_tokens": 100, "output_tokens": 4, "ignore_eos": True}
        )
    assert report.exact
    assert report.prompt_tokens == 100 * report.good
    assert report.output_tokens == 4 * report.good


def test_encrypted_and_reasoning_streams_with_half_characters_and_a_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    monkeypatch.setenv("LOAD_KEY", "s3cret")
    args = ("--https", str(tmp_path / "cert.pem"), "--reasoning", "--empty-chunks", "--ttft", "20", "--itl", "2")
    with TimingServer(model, *args, environ={"VLLM_API_KEY": "s3cret"}) as server:
        report = loaded(server, tmp_path, url=server.url, users=3, api_key={"env": "LOAD_KEY"})
        truth = server.truth()
    assert report.errors == {}
    assert report.good == truth["requests"]
    assert report.latencies["itl"].count == sum(len(stream["gaps_ns"]) for stream in truth["streams"])
    assert report.client.stamped > 0.99
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


def test_processes_and_repeats_add_up_exactly(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "20", "--itl", "2") as server:
        report = loaded(server, tmp_path, users=4, processes=2, repeats=2)
        truth = server.truth()
    assert report.client.processes == 2
    assert len(report.runs) == 2
    assert report.sent == report.requests == truth["requests"]
    assert report.generated == report.output_tokens == truth["tokens"]
    assert report.latencies["itl"].count == sum(len(stream["gaps_ns"]) for stream in truth["streams"])


def test_the_servers_own_gauges_stand_beside(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "100", "--itl", "20", "--slots", "2") as server:
        report = loaded(server, tmp_path, users=4, duration="3s")
    (pod,) = report.server
    assert pod.requests == report.sent
    assert pod.generated == report.generated
    assert pod.changed is None
    assert max(one.running for one in pod.gauges) == 2
    assert max(one.waiting for one in pod.gauges) == 2
    assert report.validity.valid


def test_requests_of_others_make_a_run_invalid_unless_they_are_expected(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "20", "--itl", "2") as server, ThreadPoolExecutor(1) as pool:
        other = pool.submit(loaded, server, tmp_path / "other", users=2, duration="8s")
        ours = loaded(server, tmp_path / "ours", users=2)
        expected = loaded(server, tmp_path / "canary", users=2, shared=True)
        other.result()
    assert ours.validity.kind == "contaminated"
    assert (tmp_path / "ours" / "again-0").is_dir()
    assert expected.validity.valid


def test_a_server_that_restarts_under_the_load_gets_no_second_try(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "20", "--itl", "2", "--restart-after", "20") as server:
        report = loaded(server, tmp_path, users=2)
    assert report.validity.kind == "server changed"
    assert "was restarted during the test" in report.validity.why
    assert not (tmp_path / "again-0").exists()


def test_a_run_that_is_too_short_is_made_again_longer(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "100", "--itl", "1") as server:
        report = loaded(server, tmp_path, users=1, duration="500ms", slo={"ttft_p95_max": "10s"})
    assert (tmp_path / "again-0").is_dir()
    assert report.requests >= 20


def test_goodput_counts_requests_that_kept_the_bounds_themselves(model: Path, tmp_path: Path) -> None:
    slo = {"ttft_p50_max": "200ms", "e2e_p50_max": "10s"}
    with TimingServer(model, "--ttft", "100", "--itl", "1", "--slots", "1") as server:
        report = loaded(server, tmp_path, users=4, duration="3s", slo=slo)
    assert report.goodput is not None
    assert 0 <= report.goodput < 0.5 * report.requests_per_second


def test_a_service_that_stops_is_told_by_kind(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--die-after", "6") as server:
        report = loaded(server, tmp_path, users=2)
    assert report.errors
    assert report.good <= 6


def test_a_warm_up_is_not_counted(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "10", "--itl", "1") as server:
        report = loaded(server, tmp_path, users=2, warmup="1s")
        assert 0 < report.requests < server.truth()["requests"]


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(BadInput, match="known: chat, completion, long-context, rag, smoke"):
        profile("chatt")
