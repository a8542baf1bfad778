"""A release is said to do worse only where that is sure."""

from __future__ import annotations

import random

import pytest

from model_delivery.measure.degradation import Served, degraded

TTFT = "vllm:time_to_first_token_seconds"


def told(requests: int, failed: int = 0, waits: dict[str, int] | None = None) -> bytes:
    lines = [f'vllm:request_success_total{{finished_reason="stop"}} {requests - failed}']
    lines += [f'http_requests_total{{handler="/v1/completions",method="POST",status="5xx"}} {failed}']
    lines += [f'{TTFT}_bucket{{le="{le}"}} {count}' for le, count in (waits or {}).items()]
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        ((19, 19), (0, 0), ""),
        ((20, 3), (0, 0), "3 of its 20 requests"),
        ((100, 2), (0, 0), ""),
        ((10_000, 200), (10_000, 0), "200 of its 10000 requests"),
        ((10_000, 200), (10_000, 150), ""),
    ],
)
def test_errors(new: tuple[int, int], old: tuple[int, int], why: str) -> None:
    said = degraded(Served.read(told(*new)), Served.read(told(*old)))
    assert (why in said, bool(said)) == (True, bool(why))


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ({"0.1": 95, "0.25": 100, "0.5": 100, "+Inf": 100}, ""),
        ({"0.1": 0, "0.25": 95, "0.5": 100, "+Inf": 100}, ""),
        ({"0.1": 0, "0.25": 70, "0.5": 100, "+Inf": 100}, "longer than 0.25 s in 30 of 100"),
        ({"0.1": 0, "0.25": 30, "0.5": 49, "+Inf": 49}, ""),
    ],
)
def test_waits(new: dict[str, int], why: str) -> None:
    old = Served.read(told(100, waits={"0.1": 95, "0.25": 100, "0.5": 100, "+Inf": 100}))
    said = degraded(Served.read(told(100, waits=new)), old)
    assert (why in said, bool(said)) == (True, bool(why))


def test_what_came_before_is_not_counted_and_an_engine_started_anew_is_counted_from_its_start() -> None:
    before = Served.read(told(1000, 500, {"0.1": 900, "+Inf": 1000}))
    since = Served.read(told(1100, 500, {"0.1": 1000, "+Inf": 1100})).since(before)
    assert (since.requests, since.errors, since.waits["TTFT"]) == (100, 0, {0.1: 100, float("inf"): 100})
    assert Served.read(told(30)).since(before).requests == 30


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"<html>", b"vllm:request_success_total NaN\n", b"a{b} c d e f\n"])
def test_what_tells_nothing_condemns_nobody(text: bytes) -> None:
    assert degraded(Served.read(text), Served()) == ""


def test_two_equal_releases_are_not_told_apart() -> None:
    drawn, alarms = random.Random(7), 0
    for _ in range(2000):
        sides = []
        for _ in range(2):
            waits = [drawn.lognormvariate(-2.5, 0.8) for _ in range(drawn.choice((60, 300, 1000)))]
            bounds = (0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0)
            counts = {str(bound): sum(wait <= bound for wait in waits) for bound in bounds} | {"+Inf": len(waits)}
            failed = sum(drawn.random() < 0.01 for _ in waits)
            sides.append(Served.read(told(len(waits), failed, counts)))
        alarms += bool(degraded(*sides))
    assert alarms <= 2
