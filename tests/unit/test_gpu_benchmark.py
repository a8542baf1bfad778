"""The GPU benchmark's arithmetic, without a GPU."""

from __future__ import annotations

import math

import pytest

from benchmarks.gpu.arithmetic import Row, between, buckets, quantile, table


def test_quantiles_are_interpolated_within_their_bucket() -> None:
    counted = {0.01: 0.0, 0.02: 50.0, 0.04: 100.0, math.inf: 100.0}
    assert quantile(counted, 0.5) == pytest.approx(20)
    assert quantile(counted, 0.75) == pytest.approx(30)
    assert quantile(counted, 0.25) == pytest.approx(15)


def test_what_lies_beyond_the_last_bound_is_that_bound_and_nothing_is_none() -> None:
    assert quantile({0.1: 5.0, math.inf: 10.0}, 0.95) == pytest.approx(100)
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_only_what_came_between_two_readings_counts_over_all_engines() -> None:
    def reading(*counts: float) -> list[tuple[str, dict[str, str], float]]:
        return [
            ("h_bucket", {"le": bound, "engine": "0"}, count)
            for bound, count in zip(("0.1", "0.2", "+Inf"), counts, strict=True)
        ]

    other = [("h_bucket", {"le": "0.1", "engine": "1"}, 3.0), ("h_count", {"engine": "0"}, 9.0)]
    before, after = buckets(reading(10, 10, 10), "h"), buckets([*reading(10, 30, 30), *other], "h")
    assert after == {0.1: 13, 0.2: 30, math.inf: 30}
    assert between(before, after) == {0.1: 3, 0.2: 20, math.inf: 20}


def test_the_table_has_the_servers_figures_beside() -> None:
    told = {"ttft_p50": 30.0, "ttft_p95": 61.04, "itl_p50": 5.5, "itl_p95": 6.0}
    row = Row(16, "this harness", 96, 2512.4, told, {"ttft_p95": 52.5}, 0.63)
    assert table([row]).splitlines()[-1] == "| 16 | this harness | 96 | 2,512 | 30.0 | 61.0 (52.5) | 5.5 | 6.0 | 0.63 |"
