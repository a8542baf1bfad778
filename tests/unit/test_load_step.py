"""The throughput step: a real Locust against a server that tells what it really sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from delivery.findings import BadInput
from delivery.metrics import LoadReport
from delivery.steps.load import LoadInput, profile, run
from tests.parts.timing_engine import TimingServer


def loaded(server: TimingServer, folder: Path, **more: object) -> LoadReport:
    facts = {"url": server.url, "model": "m", "profile": "smoke", "warmup": "0s", "duration": "1s", "folder": str(folder)}
    return run(LoadInput.model_validate(facts | more))


def test_every_request_and_token_is_counted(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "30", "--itl", "5") as server:
        report = loaded(server, tmp_path, users=4)
        truth = server.truth()
    assert report.good == report.requests == truth["requests"]
    assert report.output_tokens == truth["tokens"]
    assert report.errors == {}
    assert report.latencies["itl"].count == sum(len(stream["gaps_ns"]) for stream in truth["streams"])
    assert report.latencies["ttft"].p50 >= sorted(s["ttft_ns"] for s in truth["streams"])[len(truth["streams"]) // 2] / 1e6


def test_an_open_loop_keeps_its_rate(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "5", "--itl", "1") as server:
        report = loaded(server, tmp_path, rate="40/s", duration="3s")
        assert report.requests == server.truth()["requests"]
    assert 80 <= report.requests <= 160
    assert report.load == "40 requests/s, Poisson"


def test_errors_inside_a_stream_are_errors(model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--stream-error") as server:
        report = loaded(server, tmp_path, users=2)
    assert report.good == 0
    assert report.error_rate == 1
    assert set(report.errors) == {"error in the stream"}


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
